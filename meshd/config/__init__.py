"""From YAML files to one validated Config, with every finding at its line and column."""
