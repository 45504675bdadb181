"""Speed and memory as ratios, and experiments that take longer than tests; figures in RESULTS.md."""
