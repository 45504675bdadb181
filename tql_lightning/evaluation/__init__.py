"""Evaluation of policies in environments: rollouts, statistics, videos and Q landscapes."""
