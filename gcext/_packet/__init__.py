"""Packets: what a kernel leaves, the packet made of it, and its bytes."""
