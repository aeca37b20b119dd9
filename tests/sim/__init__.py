"""A whole mesh on one virtual clock: real mesh and planner code over a network that misbehaves."""
