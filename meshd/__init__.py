"""meshd pools the GPU boxes of a lab into one inference mesh."""

__version__ = "0.1.0"
