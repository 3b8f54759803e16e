"""MFH against the CLIP baseline over several seeds: `python -m examples.studies.compare`."""
