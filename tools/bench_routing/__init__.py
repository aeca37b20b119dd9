"""Replays recorded conversations against simulated replicas, for each way to route them."""
