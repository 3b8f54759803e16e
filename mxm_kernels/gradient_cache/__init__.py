"""Gradient caching: contrastive batches larger than the memory of the encoders.

A contrastive loss needs the features of the whole batch at once. What fills the memory are the
activations that the encoders keep for their backward pass. Two passes over micro-batches keep only
the activations of one micro-batch (Gao et al. 2021, "Scaling deep contrastive learning batch size
under memory limited setup", arXiv 2101.06983):

    1. encode every micro-batch without a graph, and remember the random state it started from
    2. the loss of all features; its backward stops at the features: f -> dL/df
    3. encode every micro-batch again, from its random state, with a graph, and go back through
       the encoder with the dL/df of its rows

The result is the gradient of the whole batch, for one more forward pass of the encoders. It is
equal to the gradient without a cache, up to rounding, for every encoder that treats its rows one
by one. BatchNorm in training mode does not: see :class:`GradientCache`.

open_clip's ``--accum-freq k`` trains on the same negatives and gives the encoders the same
gradient. It takes as many passes of the encoders, and k losses instead of one. Two things differ.
Dropout draws anew in the second pass. And the gradient of ``logit_scale`` is k times as large as
without ``--accum-freq``: each of the k losses adds the whole gradient of the scale.
"""

from mxm_kernels.gradient_cache.cache import GradientCache

__all__ = ["GradientCache"]
