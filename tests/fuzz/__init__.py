"""Files that nobody wrote by hand: valid ones with bytes changed, and others built of what formats allow."""
