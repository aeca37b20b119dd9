"""The door in front of an rpc-server, and its local end on the host's side."""
