"""Products of integers by torch's own kernels for the CPU."""
