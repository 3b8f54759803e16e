"""What a teacher in float8 changes: targets, loss and gradient against an unrounded teacher.

    python -m bench.studies.float8_teacher [--out FILE]

Everything is float64 but the rounding of the teacher's features, to float8 (``teacher_dtype``) and,
to compare, to bfloat16. Random: unit vectors without a relation. Converged: the observations of an
instance are near each other, and the teacher's near the student's, as at the end of a training.
FILE is a table in Markdown, and the numbers go beside it as JSON.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.markdown import table
from bench.studies import command
from mxm_kernels import Folds, fused_mfh_loss, fused_soft_loss
from mxm_kernels.ops.statistics import statistics

INSTANCES, VIEWS = 128, 4  # of each modality
WIDTHS, SCALES, KINDS = (256, 512, 1024), (33.0, 100.0), ("random", "converged")
NUMBERS = ("T", "u", "soft loss", "soft gradient", "loss", "gradient")
STUDENT_SCALE = 100.0 / 3

Pair = tuple[Tensor, Tensor]


def batch(kind: str, width: int) -> tuple[Pair, Pair]:
    """Student and teacher features, (M, D) and (N, D) each, in float64."""
    generator = torch.Generator().manual_seed(width)

    def drawn(rows: int) -> Tensor:
        made = torch.randn(rows, width, generator=generator, dtype=torch.float64)
        return normalize(made, dim=1)

    if kind == "random":
        x, y, a, b = (drawn(INSTANCES * VIEWS) for _ in range(4))
        return (x, y), (a, b)
    centres = drawn(INSTANCES).repeat_interleave(VIEWS, 0)
    x, y = (normalize(centres + 0.6 * drawn(len(centres)), dim=1) for _ in range(2))
    a, b = (normalize(f + 0.2 * drawn(len(f)), dim=1) for f in (x, y))
    return (x, y), (a, b)


def results(student: Pair, teacher: Pair, t: float, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The numbers of a step, by name."""
    found = {}
    for name, run in (("soft ", fused_soft_loss), ("", fused_mfh_loss)):
        x, y = (f.clone().requires_grad_() for f in student)
        options: dict[str, Any] = {} if name else {"rounds": None}
        loss = run(
            x,
            y,
            (VIEWS, VIEWS),
            logit_scale=STUDENT_SCALE,
            teacher_image_features=teacher[0],
            teacher_text_features=teacher[1],
            teacher_logit_scale=t,
            teacher_dtype=dtype,
            backend="blocked",
            **options,
        )
        loss.backward()
        assert x.grad is not None and y.grad is not None
        found[f"{name}loss"] = loss.detach()
        found[f"{name}gradient"] = torch.cat([x.grad, y.grad])
    return found


def targets(student: Pair, teacher: Pair, t: float) -> dict[str, Tensor]:
    """T, and u of the images, of a teacher as it is read."""
    x, y = student
    tables = Folds.uniform(VIEWS, VIEWS).tables(len(x), len(y), x.device)
    s, scale = (torch.tensor(v, dtype=torch.float64) for v in (STUDENT_SCALE, t))
    made = statistics(x, y, teacher, s, scale, tables, "blocked")
    return {"T": t * teacher[0] @ teacher[1].T, "u": made.teacher_mean[: len(x)]}


def in_float8(features: Tensor) -> Tensor:
    """Rounded as the package rounds them; a test holds the two together."""
    factor = 2.0 ** int(torch.log2(448 / features.abs().max()).floor())
    return (features.float() * factor).to(torch.float8_e4m3fn).to(features.dtype) / factor


def errors(kind: str, width: int, t: float) -> list[dict[str, Any]]:
    """One record for each way to round the teacher."""
    student, exact = batch(kind, width)
    expected = results(student, exact, t, None) | targets(student, exact, t)
    a, b = exact
    rounded = {
        "float8": (in_float8(a), in_float8(b)),
        "bfloat16": (a.bfloat16().double(), b.bfloat16().double()),
    }
    records = []
    for name, teacher in rounded.items():
        dtype = torch.float8_e4m3fn if name == "float8" else None
        found = results(student, exact if dtype else teacher, t, dtype)
        found |= targets(student, teacher, t)
        # T in nats, root mean square: exp turns it into a relative error of the targets.
        of_T = float((found.pop("T") - expected["T"]).square().mean().sqrt())
        relative = {
            k: float((v - expected[k]).norm() / expected[k].norm()) for k, v in found.items()
        }
        about = {"features": kind, "D": width, "t": t, "teacher": name}
        records.append(about | {n: {"T": of_T, **relative}[n] for n in NUMBERS})
    return records


def page(records: list[dict[str, Any]]) -> str:
    """The table."""
    head = ["features", "D", "teacher's scale", "teacher in", "T, nats", "u, the mean of S"]
    head += NUMBERS[2:]
    rows = [
        [str(r["features"]), str(r["D"]), f"{r['t']:g}", r["teacher"]]
        + [f"{r[name]:.1e}" for name in NUMBERS]
        for r in records
    ]
    return f"""# A teacher in float8: its error

How far a step is from one whose teacher features are not rounded. The loss is MFH with
`rounds=None` and `hard_weight=0.6`, on {INSTANCES} instances with {VIEWS} images and {VIEWS} texts
each, with a student scale of 33.3. Everything but the teacher's features is in float64.

The column T is the root mean square of the error of the teacher's logits. The other columns are
relative errors: u is the mean of S under the teacher's targets, and the losses stand with their
gradients. The error of a vector is its norm over the norm of the vector.
`python -m bench.studies.float8_teacher` writes this page.

<!-- --8<-- [start:table] -->
{table(head, rows)}
<!-- --8<-- [end:table] -->
"""


def measured() -> list[dict[str, Any]]:
    """The records of every case."""
    return [r for case in product(KINDS, WIDTHS, SCALES) for r in errors(*case)]


if __name__ == "__main__":
    command.run(__doc__, measured, page)
