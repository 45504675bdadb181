"""A run's folder: file names, lock, provenance, checkpoints and metrics file."""
