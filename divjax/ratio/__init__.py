"""Density ratios from samples, and what they tell."""
