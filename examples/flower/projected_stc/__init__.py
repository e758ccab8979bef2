"""Projected STC on Flower."""
