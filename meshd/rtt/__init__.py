"""How far away the other nodes are."""
