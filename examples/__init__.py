"""Programs that use the package: a quick start and a real fine-tuning run."""
