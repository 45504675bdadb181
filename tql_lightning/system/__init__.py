"""Files that are whole or absent, full disks, signals, child processes."""
