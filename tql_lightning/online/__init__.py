"""The online phase of a run: the policy's own experience in its environment."""
