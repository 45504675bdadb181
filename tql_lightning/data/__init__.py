"""Offline datasets: loading and checking, sampling on the device, collecting."""
