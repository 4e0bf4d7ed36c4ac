"""The module tree: paths, ties, edits that can be undone, entry points."""
