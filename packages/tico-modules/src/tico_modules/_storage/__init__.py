"""Codes and grids as buffers, and the JSON that says how they are laid out."""
