"""How many negatives a filter leaves out, by what it makes of several positives.

    python -m bench.studies.filter_share [--out FILE]

The guide is a dual encoder whose projections examples.finetune trains on emoji, some minutes on a
CPU. It looks at the instances of the test split. FILE is a table in Markdown, and the numbers go
beside it as JSON.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor

from bench.markdown import table
from bench.studies import command

OPTIONS: dict[str, Any] = {"unfreeze": "heads"}
SLACK = 1e-4  # that of the package
OF_POSITIVES = {
    "the least similar": lambda c, same: c.masked_fill(~same, torch.inf).amin(1),
    "the mean": lambda c, same: c.mul(same).sum(1) / same.sum(1),
    "the most similar": lambda c, same: c.masked_fill(~same, -torch.inf).amax(1),
}


def shares(images: Tensor, texts: Tensor, same: Tensor) -> list[dict[str, Any]]:
    """A record for each way to make a threshold of a row's positives, with margin 0.

    ``images`` (M, D) and ``texts`` (N, D) are the guide's features, ``same`` (M, N) whether a pair
    shows one instance; every row has a positive.
    """
    c, records = images.double() @ texts.double().T, []
    sides = (c, same), (c.T, same.T)
    negatives = sum(int((~s).sum()) for _, s in sides)
    for name, of_row in OF_POSITIVES.items():
        out = 0
        for similarities, alike in sides:
            threshold = of_row(similarities, alike)[:, None] + SLACK
            out += int(((similarities > threshold) & ~alike).sum())
        records.append({"threshold": name, "left_out": out, "negatives": negatives})
    return records


def guided() -> tuple[Tensor, Tensor, Tensor]:
    """Features of the trained guide on the test split, and which pairs show one instance."""
    from examples.finetune.config import Config  # here: their imports take seconds
    from examples.finetune.train import run

    with tempfile.TemporaryDirectory() as folder:
        made = run(Config(output_dir=folder, **OPTIONS))
    data = made.material.evaluation
    image_ids, text_ids = torch.as_tensor(data.image_ids), torch.as_tensor(data.text_ids)
    return made.images.cpu(), made.texts.cpu(), image_ids[:, None] == text_ids


def measured() -> list[dict[str, Any]]:
    """The records of emoji."""
    images, texts, same = guided()
    about = {"images": len(images), "texts": len(texts), "torch": torch.__version__}
    return [record | about for record in shares(images, texts, same)]


def page(records: list[dict[str, Any]]) -> str:
    """The table."""
    first = records[0]
    rows = [
        [r["threshold"], f"{100 * r['left_out'] / r['negatives']:.0f} % of all negatives"]
        for r in records
    ]
    return f"""# How many negatives a filter leaves out

A row with several positives needs one threshold: the guide's similarity with the least similar of
its positives, the mean over them, or that with the most similar. The package takes the mean. The
table has how many negatives each of them leaves out with margin 0, in both directions together.
The guide was trained on emoji by `python -m examples.finetune --unfreeze heads`, and looks at the
{first["images"]:,} images and {first["texts"]:,} texts of the test split (torch {first["torch"]}).
`python -m bench.studies.filter_share` writes this page.

<!-- --8<-- [start:table] -->
{table(["threshold", "leaves out"], rows)}
<!-- --8<-- [end:table] -->
"""


if __name__ == "__main__":
    command.run(__doc__, measured, page)
