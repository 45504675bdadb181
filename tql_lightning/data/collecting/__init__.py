"""New datasets from real environments."""
