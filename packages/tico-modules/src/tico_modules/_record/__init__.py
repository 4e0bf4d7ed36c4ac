"""Records of a conversion: reports, runs, fingerprints."""
