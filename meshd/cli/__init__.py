"""The verbs of the command line, one file each, with no logic of their own."""
