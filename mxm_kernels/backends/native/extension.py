"""The compiled extension ``mxm_kernels._native``, or why there is none, and its arguments.

It takes addresses: whoever calls it keeps the tensors alive, and contiguous where it reads them so.
"""

from __future__ import annotations

import torch

from mxm_kernels.backends.interface import Problem

try:
    import mxm_kernels._native as cpp

    MISSING = ""
except ImportError as error:  # built without a compiler: the package is whole without it
    cpp = None  # type: ignore[assignment]
    MISSING = str(error)


def problem_of(p: Problem):
    """The problem as the extension takes it."""
    made = cpp.Problem.make(
        p.x.shape[0],
        p.y.shape[0],
        p.scale.item(),
        0.0 if p.teacher_scale is None else p.teacher_scale.item(),
        p.has_soft,
        p.image_groups.data_ptr(),
        p.text_groups.data_ptr(),
        p.offsets.data_ptr(),
        p.pair_texts.data_ptr(),
        threads(p.x.shape[0] * p.y.shape[0]),
    )
    if p.told:
        rules = [None if rule is None else rule.contiguous() for rule in p.rules]
        made.tell([0 if rule is None else rule.data_ptr() for rule in rules])  # it copies them
    return made


def threads(elements: int) -> int:
    """Torch's number of threads, fewer where a thread has less to do than starting it costs."""
    return max(1, min(torch.get_num_threads(), elements >> 14))


def features_of(p: Problem):
    """The features of a problem as the extension takes them where it multiplies them itself."""
    assert (p.teacher_x is None) == (p.teacher_y is None)
    if p.teacher_x is None or p.teacher_y is None:
        return cpp.Features.make(p.x.data_ptr(), p.y.data_ptr(), p.x.shape[1], 0, 0, 0)
    return cpp.Features.make(
        p.x.data_ptr(),
        p.y.data_ptr(),
        p.x.shape[1],
        p.teacher_x.data_ptr(),
        p.teacher_y.data_ptr(),
        p.teacher_x.shape[1],
    )
