"""Which captions name the class, and captions that a class name is put into.

The paper (section 4.4) counts the titles that hold a word of an attribute's value, and completes
some that do not with the value. A class name here is a category or subcategory of Unicode such as
"Food & Drink" or "food-fruit"; it is put behind the caption in plain words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.data.instances import Instance
from examples.studies.cma_clip.data import Labels

EMPTY_WORDS = {"and", "other"}
PLURAL_FROM = 4  # letters; "bus" stays as it is
WRONG_NAMES_SEED = 0


def spoken(name: str) -> str:
    """A class name in plain words: "food fruit", "food and drink"."""
    return " ".join(name.lower().replace("&", "and").replace("-", " ").split())


def words(text: str) -> set[str]:
    """Words of a text, in the singular as far as a final s tells."""
    found = set(re.findall(r"[a-z]+", text.lower())) - EMPTY_WORDS
    return {
        word[:-1] if len(word) >= PLURAL_FROM and word.endswith("s") else word for word in found
    }


def names_in_part(caption: str, names: Sequence[str]) -> bool:
    """Whether a caption holds a word of one of some class names."""
    return any(words(caption) & words(name) for name in names)


def names_in_full(caption: str, names: Sequence[str]) -> bool:
    """Whether a caption holds all words of one of some class names."""
    return any(words(name) <= words(caption) for name in names if words(name))


def with_names(caption: str, names: Sequence[str]) -> str:
    """A caption with class names put behind it."""
    return ", ".join([caption, *map(spoken, names)])


@dataclass(frozen=True)
class Caption:
    """A caption of a labelled instance: its row, its text, and its class names, one for each task.

    `lacks` says that it holds no word of them. `wrong` are the names of an instance whose classes
    are others in every task.
    """

    row: int
    text: str
    names: tuple[str, ...]
    lacks: bool
    wrong: tuple[str, ...]


def captions_of(instances: Sequence[Instance], labels: Labels) -> list[Caption]:
    """All captions of the labelled instances."""
    rng = np.random.default_rng(WRONG_NAMES_SEED)
    names = [names_of(labels, place) for place in range(len(instances))]
    labelled = [n for n in names if n]
    found: list[Caption] = []
    row = 0
    for instance, own in zip(instances, names, strict=True):
        for text in instance.captions:
            if own:
                lacks = not names_in_part(text, own)
                found.append(Caption(row, text, own, lacks, other_names(own, labelled, rng)))
            row += 1
    return found


def names_of(labels: Labels, place: int) -> tuple[str, ...]:
    """Class names of an instance, one for each task; empty where it has no label."""
    numbers = {task: int(labels.of[task][place]) for task in labels.classes}
    if min(numbers.values()) < 0:
        return ()
    return tuple(labels.classes[task][number] for task, number in numbers.items())


def other_names(
    own: tuple[str, ...], labelled: Sequence[tuple[str, ...]], rng: np.random.Generator
) -> tuple[str, ...]:
    """Names of a random instance that differ from one's own in every task."""
    while True:
        drawn = labelled[int(rng.integers(len(labelled)))]
        if all(a != b for a, b in zip(own, drawn, strict=True)):
            return drawn


def shares(captions: Sequence[Caption], tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Percent of the captions that name their class, by task and in any of them."""
    found = {}
    for title, places in {
        **{task: [number] for number, task in enumerate(tasks)},
        "any task": list(range(len(tasks))),
    }.items():
        names = [[caption.names[place] for place in places] for caption in captions]
        texts = [caption.text for caption in captions]
        pairs = list(zip(texts, names, strict=True))
        found[title] = {
            "a word": 100 * sum(names_in_part(*pair) for pair in pairs) / len(pairs),
            "all words": 100 * sum(names_in_full(*pair) for pair in pairs) / len(pairs),
        }
    return found
