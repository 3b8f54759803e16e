"""A loss for the trainer of sentence-transformers: several positives, hard negatives, labels.

The trainer gives a loss the tokens of each column of the data set and, where there is one, its
label column. Importing this package does not import sentence-transformers: the loss calls the
model that it is given.
"""

from mxm_kernels.sentence_transformers.loss import MultifoldLoss

__all__ = ["MultifoldLoss"]
