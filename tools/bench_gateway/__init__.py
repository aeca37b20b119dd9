"""What a gateway costs, ours beside others'."""
