"""A checkpoint's policy in real environments, and the figures that come of it."""
