"""Peak memory of a training step against the batch size: `python -m examples.studies.memory`."""
