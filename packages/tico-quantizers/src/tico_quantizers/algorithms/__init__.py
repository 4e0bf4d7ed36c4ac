"""The algorithms, a folder each: a config, a plan, and what becomes of every layer."""
