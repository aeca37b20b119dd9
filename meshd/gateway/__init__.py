"""The data plane: an OpenAI API in front of the engines."""
