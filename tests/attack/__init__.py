"""Attacks on the whole program: hostile files on the command line, and kills at chosen moments."""
