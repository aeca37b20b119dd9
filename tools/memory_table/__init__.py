"""Compares meshd's memory estimate with the engine's own on sparse files of real models' shapes."""
