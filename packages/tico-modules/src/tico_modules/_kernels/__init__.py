"""Products with integer weights by torch's own kernels for the CPU."""
