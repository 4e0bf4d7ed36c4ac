"""What is known of a conversion: reports, runs, fingerprints."""
