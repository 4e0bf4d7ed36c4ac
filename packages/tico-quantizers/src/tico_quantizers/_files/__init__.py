"""Saved models: manifest, shards, and what other tools need beside them."""
