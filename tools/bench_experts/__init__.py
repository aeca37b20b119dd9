"""`make bench-experts`: what shards of a mixture of experts cost and keep."""
