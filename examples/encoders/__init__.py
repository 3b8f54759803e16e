"""Dual encoders of images and captions: packaged ones, and any open_clip model."""
