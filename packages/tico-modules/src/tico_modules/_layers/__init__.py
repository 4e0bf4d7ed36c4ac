"""The modules in a converted model."""
