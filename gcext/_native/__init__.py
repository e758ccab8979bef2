"""The native code: finding and loading it, every operator with its types, and what they report."""
