"""Time and peak memory of the retrieval metrics at the size of Flickr30K and larger.

    python -m bench.studies.retrieval [--images 31000] [--captions 5] [--dimension 256] [--out FILE]

The floor is the two matrix products alone, into a slab of the same size, in the same process;
both are timed by the clock and by the processor time of all threads, which other processes on a
busy machine disturb less. The memory is what the process occupied beyond the features, at most,
while the metrics were computed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.machine import describe
from bench.memory import forget_peak, status_bytes
from bench.results_file import RESULTS
from mxm_kernels.retrieval import retrieval_metrics


class Stopwatch:
    """Clock and processor time since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def seconds(self) -> dict[str, float]:
        """By the clock, and by the processor."""
        now = time.perf_counter(), time.process_time()
        return {"clock": now[0] - self.start[0], "processor": now[1] - self.start[1]}


def products(x: Tensor, y: Tensor, workspace_bytes: int) -> None:
    """Both directions' similarities, a slab at a time, and nothing else."""
    for queries, candidates in ((x, y), (y, x)):
        rows = workspace_bytes // (4 * len(candidates))
        slab = torch.empty(rows, len(candidates))
        for start in range(0, len(queries), rows):
            chunk = queries[start : start + rows]
            torch.mm(chunk, candidates.T, out=slab[: len(chunk)])


def measure(images: int, captions: int, dimension: int, workspace_bytes: int) -> dict:
    """One run of the metrics and one of the floor, on random features."""
    torch.manual_seed(0)
    centres = torch.randn(images, dimension)
    x = normalize(centres + torch.randn(images, dimension), dim=-1)
    y = centres.repeat_interleave(captions, 0)
    y = normalize(y.add_(torch.randn(y.shape).mul_(3)), dim=-1)
    del centres
    forget_peak()
    before, metrics = status_bytes("VmRSS"), Stopwatch()
    result = retrieval_metrics(x, y, (1, captions), workspace_bytes=workspace_bytes)
    seconds, peak, floor = metrics.seconds(), status_bytes("VmHWM"), Stopwatch()
    products(x, y, workspace_bytes)
    return {
        "images": images,
        "texts": images * captions,
        "dimension": dimension,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "workspace_bytes": workspace_bytes,
        "matrix_bytes": 4 * len(x) * len(y),
        "peak_resident_bytes": peak - before,
        "seconds": seconds,
        "seconds_of_the_products_alone": floor.seconds(),
        "result": {name: vars(metrics) for name, metrics in result._asdict().items()},
        **describe(x.device),
    }


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=31_000)
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--workspace_bytes", type=int, default=64 << 20)
    parser.add_argument("--out", type=Path, default=RESULTS / "retrieval.json")
    options = parser.parse_args()
    record = measure(options.images, options.captions, options.dimension, options.workspace_bytes)
    text = json.dumps({"command": "python -m bench.studies.retrieval", **record}, indent=1)
    options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
