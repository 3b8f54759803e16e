"""The momentum model: an exponential moving average of the student's parameters."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_teacher(student: nn.Module, decay: float) -> AveragedModel:
    """Teacher that starts as a copy of the student, in evaluation mode for good.

    Only parameters are averaged: batch norm's statistics never change (see DualEncoder.train).
    """
    teacher = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))
    # The first update of an AveragedModel copies; this makes the first optimiser step count as an
    # update of the average instead.
    teacher.update_parameters(student)
    return teacher.eval().requires_grad_(False)
