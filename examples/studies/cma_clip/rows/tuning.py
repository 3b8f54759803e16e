"""The learning rate of every trained row, chosen on validation pairs."""

from collections.abc import Callable, Iterable
from statistics import fmean

from .plan import TRAINED

LADDER = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FIRST_RATES = LADDER[2:6]
TUNING_SPLITS = 2  # with one seed each
Grids = dict[str, tuple[float, ...]]  # by row: neighbours on the ladder
Trials = dict[str, dict[str, list[float]]]  # by row and rate: one number for each tuning split


def tuned(run: Callable[[Grids], Iterable[dict[str, dict[str, float]]]]) -> Trials:
    """Try the first rates, and further ones where the best is at an end, to the ladder's ends.

    Args:
        run: gives the validation accuracy by row and rate, for each tuning split.

    """
    grids: Grids = dict.fromkeys(TRAINED, FIRST_RATES)
    while True:
        outcomes = list(run(grids))
        trials = {
            row: {f"{rate:g}": [o[row][f"{rate:g}"] for o in outcomes] for rate in rates}
            for row, rates in grids.items()
        }
        wider = {row: widened(grids[row], best(trials[row])) for row in grids}
        if wider == grids:
            return trials
        grids = wider


def best(trials: dict[str, list[float]]) -> float:
    """Rate with the best mean."""
    return float(max(trials, key=lambda rate: fmean(trials[rate])))


def widened(rates: tuple[float, ...], chosen: float) -> tuple[float, ...]:
    """The rates, and the ladder's next one where the chosen rate is at an end of them."""
    first, last = LADDER.index(rates[0]), LADDER.index(rates[-1])
    if chosen == rates[0]:
        first = max(first - 1, 0)
    elif chosen == rates[-1]:
        last = min(last + 1, len(LADDER) - 1)
    return LADDER[first : last + 1]
