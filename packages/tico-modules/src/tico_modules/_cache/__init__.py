"""Keys and values of attention as codes."""
