"""What membership costs and how quick it is: meshd's session beside Serf's agent, one run."""
