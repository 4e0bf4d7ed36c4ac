"""What a model shows while data run through it, and its blocks run again."""
