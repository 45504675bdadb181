"""Policies that leave the project; the release's weights in and out."""
