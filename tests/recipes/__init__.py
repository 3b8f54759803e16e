"""Every recipe against a dense form, and against other packages."""
