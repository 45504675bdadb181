"""A run's folder: its files, lock, provenance, checkpoints and metrics file."""
