"""Data sets, from the layout they came in to batches of groups of faces."""
