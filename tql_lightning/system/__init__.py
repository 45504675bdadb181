"""Atomic file writes, full disks, signals and child processes."""
