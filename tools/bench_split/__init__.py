"""Holds the predicted speed of splits against what real engines do, over links of known delay."""
