"""Paired differences between rows over the splits, with their standard errors.

Runs are matched by split and seed; the seeds of a split are averaged first. The training sets of
the splits overlap, so their results are not independent, and the plain standard error is too
small. Nadeau and Bengio (Machine Learning 52, 2003) enlarge the variance of the mean by the ratio
of test to training size:

    SE^2 = (1 / splits + n_test / n_train) s^2,    here n_test / n_train = 1 / (splits - 1)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

LEVEL = 0.05  # of the tests: intervals are of 95 %
POWER = 0.8


@dataclass(frozen=True)
class Contrast:
    """Difference of two rows: mean, standard error, and the 95 % interval around it.

    Args:
        mean: of the difference.
        stderr: of the mean.
        low: lower end of the interval.
        high: its upper end.
        p: two-sided p value of Student's t test that the mean is 0.
        smallest: the smallest true difference that such a test finds in four of five studies.

    """

    mean: float
    stderr: float
    low: float
    high: float
    p: float
    smallest: float

    @property
    def verdict(self) -> str:
        """What can be said about it: nothing, where 0 is in the interval."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "within noise"


def contrast(first: ArrayLike, second: ArrayLike) -> Contrast:
    """First - second, run by run: arrays (splits,) or (splits, seeds)."""
    difference = np.subtract(first, second)
    if difference.ndim == 2:
        difference = difference.mean(1)
    mean, splits = float(difference.mean()), len(difference)
    if splits < 2:
        return Contrast(mean, np.nan, -np.inf, np.inf, np.nan, np.inf)
    stderr = float(np.sqrt((1 / splits + 1 / (splits - 1)) * difference.var(ddof=1)))
    student = student_t(splits - 1)
    reach = float(student.ppf(1 - LEVEL / 2))
    p = 2 * float(student.sf(abs(mean) / stderr)) if stderr else float(not mean)
    smallest = (reach + float(student.ppf(POWER))) * stderr
    return Contrast(mean, stderr, mean - reach * stderr, mean + reach * stderr, p, smallest)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number (Holm, 1979): one below 0.05 stands among all of them."""
    count = len(p_values)
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * (count - np.arange(count))
    adjusted = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted[np.argsort(order)].tolist()
