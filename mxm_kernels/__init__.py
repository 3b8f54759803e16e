"""Fused multifold contrastive losses for PyTorch."""

__version__ = "0.1.0"
