"""A tour of the package in cells: the loss, its rounds, a training and retrieval, on 300 emoji."""
