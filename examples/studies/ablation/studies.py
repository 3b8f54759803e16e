"""The studies: which settings are run, and which of their differences were asked for first."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

from examples.studies.protocol.runs import Point
from examples.studies.protocol.tuning import Grid, Tuning

from .experiment import Cell, Lab
from .rows import ROWS, Row
from .settings import Drawn, Setting, base_setting, sized

EQUAL_TIME_TO = "Hard (10) + Soft"
SIZES = (20, 50, 100, 200)
HARD_WEIGHTS = (1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)
CHECKED = (1.0, 0.6, 0.2)  # hard_weights at a second temperature
DECAYS = (0.9, 0.95, 0.99, 0.995)
LONGER = 600  # steps, since 140 leave a decay of 0.995 near its start
SECOND_TEMPERATURE = 2.0  # times the tuned one
DRAWN: tuple[Drawn, ...] = ("once", "each step")
LEVELS = ((1, 1), (1, 0), (2, 0), (0, 1), (0, 2), (0, 0))  # views and captions; 0 is all

HARD = Row("Hard (10)", "hard", 10)
MFH = Row("Hard (10) + Soft", "hard", 10, soft=True)


@dataclass(frozen=True)
class Question:
    """A difference that was asked for before the runs: first - second, each (panel, curve, x)."""

    name: str
    first: tuple[str, str, float]
    second: tuple[str, str, float]


@dataclass(frozen=True)
class Study:
    """Cells of a study and how its page reads them.

    Args:
        title: of the page.
        fixed: what was held fixed, and what was chosen how.
        x_label: of the plots.
        cells: made by tuning.
        questions: the primary contrasts.

    """

    title: str
    fixed: str
    x_label: str
    cells: Callable[[Lab], list[Cell]]
    questions: tuple[Question, ...] = ()


def based(lab: Lab, row: Row) -> Setting:
    """A row with the plan's schedule."""
    return sized(base_setting(row, lab.size, lab.plan.batch_size, lab.plan.epochs), lab.size)


def chosen(setting: Setting, tuning: Tuning, panel: str, curve: str, x: float) -> Cell:
    """A cell at the tuned point."""
    return Cell(setting, tuning.best, tuning.at_edge, panel, curve, x)


def table(lab: Lab) -> list[Cell]:
    """Every row, each tuned; the control of equal time last, whose steps the others' times give."""
    settings = [based(lab, row) for row in ROWS]
    tuned = lab.tune([s for s in settings if s.row.pairs != "equal time"])
    for place, setting in enumerate(settings):
        if setting.row.pairs == "equal time":
            settings[place] = replace(setting, steps=round(setting.steps * time_ratio(tuned)))
            tuned |= lab.tune([settings[place]])
    return [chosen(s, tuned[s], s.row.side, s.row.name, 0.0) for s in settings]


def time_ratio(tuned: dict[Setting, Tuning]) -> float:
    """How many times as long the row of equal time trains as CLIP on as many pairs."""

    def seconds(wanted: Callable[[Row], bool]) -> float:
        (setting,) = (setting for setting in tuned if wanted(setting.row))
        return median(tuned[setting].seconds)

    hard = seconds(lambda row: row.name == EQUAL_TIME_TO and row.side == "none")
    return hard / seconds(
        lambda row: row.pairs == "equal instances" and row.name == "CLIP on pairs"
    )


def batch_size(lab: Lab) -> list[Cell]:
    """MFH over the batch size, with equal epochs and with equal steps."""
    base = based(lab, MFH)
    temperature = lab.tune([base])[base].best.temperature
    sizes = [size for size in SIZES if size <= lab.size.instances]
    made = {
        (held, size): base_setting(MFH, lab.size, size, lab.plan.epochs)
        if held == "equal epochs"
        else replace(base, batch_size=size)
        for held, size in product(("equal epochs", "equal steps"), sizes)
    }
    tuned = lab.tune(list(made.values()), Grid(lab.plan.grid.lrs, (temperature,)))
    return [chosen(s, tuned[s], held, MFH.name, size) for (held, size), s in made.items()]


def observations(lab: Lab) -> list[Cell]:
    """The hard loss over the number of views and captions, drawn once or at each step."""
    base = based(lab, HARD)
    made = {
        (drawn, level): replace(base, views=level[0], captions=level[1], drawn=drawn)
        for drawn, level in product(DRAWN, LEVELS)
    }
    whole = replace(base, views=0, captions=0)
    made = {key: whole if key[1] == (0, 0) else setting for key, setting in made.items()}
    tuned = lab.tune(list(dict.fromkeys(made.values())))
    cells = []
    for (drawn, level), setting in made.items():
        share = lab.size.rows(whole) / lab.size.rows(setting)
        for held, steps in (("equal steps", 1.0), ("equal rows", share)):
            longer = replace(setting, steps=round(setting.steps * steps))
            cells.append(chosen(longer, tuned[setting], f"{drawn}, {held}", named(level), 0.0))
    return cells


def named(level: tuple[int, int]) -> str:
    """Numbers of images and captions in words."""
    images, texts = (str(k) if k else "all" for k in level)
    ends = ("" if k == "1" else "s" for k in (images, texts))
    return f"{images} image{next(ends)}, {texts} caption{next(ends)}"


def curves(lab: Lab) -> list[Cell]:
    """MFH over hard_weight and over the teacher's decay, at the point of hard_weight 1."""
    base = based(lab, HARD)
    tuning = lab.tune([base])[base]
    point, edge = tuning.best, tuning.at_edge
    other = Point(point.lr, point.temperature * SECOND_TEMPERATURE)
    mfh = replace(base, row=MFH)
    cells = [
        Cell(weighted(mfh, weight), p, edge, "hard_weight", name, weight)
        for p, name, weights in (
            (point, "tuned temperature", HARD_WEIGHTS),
            (other, "twice the tuned temperature", CHECKED),
        )
        for weight in weights
    ]
    for steps in (base.steps, LONGER):
        for decay in DECAYS:
            setting = replace(mfh, steps=steps, teacher_decay=decay)
            cells.append(Cell(setting, point, edge, "teacher's decay", f"{steps} steps", decay))
    return cells


def weighted(setting: Setting, hard_weight: float) -> Setting:
    """MFH at a hard_weight; at 1 it has no teacher, which nothing would read."""
    row = MFH if hard_weight < 1 else HARD
    return replace(setting, row=row, soft_weight=1 - hard_weight)


def _rows(name: str, first: str, second: str, side: str = "none") -> Question:
    return Question(name, (side, first, 0.0), (side, second, 0.0))


def _ends(panel: str) -> Question:
    ends = ((panel, MFH.name, size) for size in (SIZES[-1], SIZES[0]))
    return Question(f"200 instances instead of 20, {panel}", *ends)


def _levels(name: str, panel: str, level: tuple[int, int]) -> Question:
    return Question(name, (panel, named((0, 0)), 0.0), (panel, named(level), 0.0))


STUDIES = {
    "table": Study(
        "The paper's Table 5 and rows beside it",
        "Each row has its own learning rate and temperature.",
        "",
        table,
        (
            _rows("MFH instead of one fixed pair", "Hard (10) + Soft", "CLIP, masked"),
            _rows("All positives instead of one", "All", "CLIP, masked"),
            _rows("The expectation instead of all positives", "Hard (expectation)", "All"),
            _rows("Soft beside 10 rounds", "Hard (10) + Soft", "Hard (10)"),
            _rows("MFH, CLIP with equal time", "Hard (10) + Soft", "CLIP on pairs, equal time"),
            _rows("Momentum targets beside pairs", "CLIP on pairs + Soft", "CLIP on pairs"),
            _rows("Robust-XR's targets beside pairs", "Robust-XR on pairs", "CLIP on pairs"),
            _rows("The intra-modal term", "Hard (10) + Soft + intra-modal", "Hard (10) + Soft"),
        ),
    ),
    "batch_size": Study(
        "Recall and time against the batch size",
        "Held fixed: the number of epochs (left), or of steps (right). Chosen again for each size: "
        "the learning rate. The temperature is the one that was chosen at 128 instances.",
        "instances in a batch",
        batch_size,
        (_ends("equal epochs"), _ends("equal steps")),
    ),
    "observations": Study(
        "Recall against the number of images and captions",
        "Loss: Hard (10). Held fixed: the instances, the batch of 128, the whole test gallery. "
        "*once*: the observations of an instance are drawn before the training, so there are "
        "fewer data. *each step*: they are drawn anew for every batch, so only the batch is "
        "smaller. With *equal rows* a setting has as many more steps as give it the same number "
        "of images and captions in all; it keeps the learning rate of equal steps.",
        "",
        observations,
        (
            _levels("All captions instead of one, data", "once, equal rows", (0, 1)),
            _levels("All images instead of one, data", "once, equal rows", (1, 0)),
            _levels("All captions instead of one, batch", "each step, equal rows", (0, 1)),
            _levels("All images instead of one, batch", "each step, equal rows", (1, 0)),
        ),
    ),
    "curves": Study(
        "Curves of hard_weight and of the teacher's decay",
        "Loss: ten rounds with a momentum teacher. Held fixed: learning rate and temperature, "
        "which were chosen at hard_weight 1; beside the decay hard_weight 0.6, beside the weight "
        "decay 0.99. The cosine schedule ends with the last step.",
        "",
        curves,
        (
            Question(
                "hard_weight 0.6 instead of 1",
                ("hard_weight", "tuned temperature", 0.6),
                ("hard_weight", "tuned temperature", 1.0),
            ),
            Question(
                "decay 0.99 instead of 0.9, 600 steps",
                ("teacher's decay", "600 steps", 0.99),
                ("teacher's decay", "600 steps", 0.9),
            ),
        ),
    ),
}
