"""Files from strangers, checked before use, and the names that they may have imported."""
