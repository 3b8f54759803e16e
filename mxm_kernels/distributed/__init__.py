"""The operators over the ranks of a process group; the one place of torch.distributed."""
