"""The tensor cache of rpc-servers: filled from files that are here, checked, and bounded."""
