"""API keys: what a key may, the files that say so, and whether there are any."""
