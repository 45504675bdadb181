"""Datasets: loading, checking, sampling, collecting."""
