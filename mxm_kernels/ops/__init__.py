"""The differentiable operators, registered with torch.library: tensors in, statistics out."""
