"""What a report tells, as values and as JSON."""
