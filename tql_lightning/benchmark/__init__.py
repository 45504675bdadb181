"""A benchmark: a suite of runs that is planned, checked, run by an engine and summed up in a table."""
