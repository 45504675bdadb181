"""The page of `tql report`, plots and statistics of runs."""
