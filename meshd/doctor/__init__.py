"""Checks that name what is wrong, show the evidence, and say what mends it."""
