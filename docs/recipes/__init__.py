"""Losses of the literature as a few lines over the list of rows."""
