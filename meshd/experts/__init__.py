"""Expert shards: which experts of a mixture matter, files with a part of them, and what that costs.

A shard is a GGUF of its own with the whole trunk and so many experts in each layer; it runs on a
stock llama-server, and no traffic goes between nodes. docs/experts.md tells the whole of it.
"""
