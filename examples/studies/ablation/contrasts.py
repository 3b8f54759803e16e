"""Paired differences between rows over the splits, with their standard errors.

The training sets of the splits overlap, so their results are not independent, and the plain
standard error is too small. Nadeau and Bengio (Machine Learning 52, 2003) enlarge the variance of
the mean by the ratio of test to training size:

    SE^2 = (1 / splits + n_test / n_train) s^2,    here n_test / n_train = 1 / (splits - 1)
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t


@dataclass(frozen=True)
class Contrast:
    """Difference of two rows: mean, standard error, and the 95 % interval around it."""

    mean: float
    stderr: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What can be said about it: nothing, where 0 is in the interval."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "within noise"


def contrast(first: list[float], second: list[float]) -> Contrast:
    """First - second, split by split."""
    difference = np.subtract(first, second)
    splits = len(difference)
    if splits < 2:
        return Contrast(float(difference.mean()), np.nan, -np.inf, np.inf)
    stderr = float(np.sqrt((1 / splits + 1 / (splits - 1)) * difference.var(ddof=1)))
    mean, reach = float(difference.mean()), stderr * float(student_t.ppf(0.975, splits - 1))
    return Contrast(mean, stderr, mean - reach, mean + reach)
