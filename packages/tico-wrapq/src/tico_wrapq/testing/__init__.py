"""What every wrapper promises, as tests to inherit."""
