"""Pure: from a view and a config to a plan, with reasons."""
