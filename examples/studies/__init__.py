"""Experiments whose results are in the documentation; each says how it is run."""
