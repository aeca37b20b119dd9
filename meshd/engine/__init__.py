"""Finding, installing and describing the llama.cpp engine."""
