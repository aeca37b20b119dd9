"""GGUF facts and which models lie on this node's disks."""
