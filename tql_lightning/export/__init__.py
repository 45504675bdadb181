"""Exported policies, and conversion of parameters from and to the authors' release."""
