"""What both guards add to a round trip, what they leave of the throughput, and rude callers."""
