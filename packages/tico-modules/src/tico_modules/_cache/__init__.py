"""Keys and values of attention as integers."""
