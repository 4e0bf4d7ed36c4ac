"""The integer modules, what they are made of, and the kernels that run them."""
