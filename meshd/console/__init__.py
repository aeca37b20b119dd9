"""The status API of a node."""
