"""Links: one direction between two ends. A sender, and a receiver that combines."""
