"""What this machine is: processors, memory, GPUs."""
