"""A model of the loss over many devices: measured compute, stated bandwidths, nothing else.

    python -m bench.models.scaling_model [--results FOLDER] [--out FOLDER]

No number that it writes was measured over several devices. Compute comes from one device's
record in bench/results, or, where there is no record, from a data sheet's peak; bytes from
``traffic.py``, which a test holds to what is sent; bandwidths from data sheets. ``ASSUMPTIONS``
says what is assumed. W ranks hold M_r images and N_r texts each (weak scaling), a rank computes
its images with all W N_r texts:

    compute      c = W c_1, c_1 a rank's own block: forward f, backward b
    all-gather   T = c + gathered / gather bandwidth + exchanged / bandwidth + messages * latency
    ring         T = f + (W - 1) max(f, block) + b + (W - 1) max(b, block + gradient) + the rest

Efficiency is c / T: 1 if all communication hides behind compute. One device would take W c for
the same batch, so W ranks are W times the efficiency faster than it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from bench.markdown import seconds, table
from bench.models.traffic import bytes_sent
from bench.report import results_files
from bench.results_file import RESULTS, Record, read, timed

FOLDER = RESULTS / "scaling_model"
RANKS = (1, 2, 4, 8, 16, 32, 64)
OURS = ("triton", "native", "blocked")  # in this order
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

ASSUMPTIONS = """\
- Every rank has as many rows as the batch of the record. All observations of an instance are on
  one rank. The batch grows with the number of ranks. So does the work of a rank, since it compares
  its images with the texts of all ranks.
- The time of computing is proportional to the number of similarities. It is taken from the largest
  batch that was timed. Smaller batches cost more for each similarity.
- Every rank is a device of its own. Several processes on one machine would share its memory
  bandwidth.
- The all-gather and the exchange of gradients overlap with nothing. In the ring a block is sent
  while the block before it is computed; the longer of the two counts. Computing does not become
  slower while something is sent.
- A link runs at its stated bandwidth in each direction at once, and there is no congestion. No
  collective reaches that in practice.
- Between nodes of 8 GPUs an all-gather brings each block into a node once, over all of its 8 ports.
  The exchange of gradients and the ring's blocks go from rank to rank through one port.
- Latencies are assumptions, not from a source: see the table.
- The model has the loss alone. The encoders and the averaging of their gradients are not in it."""


@dataclass(frozen=True)
class Network:
    """What connects the ranks; bytes a second and direction."""

    name: str
    bandwidth: float  # from rank to rank
    gather_bandwidth: float  # of an all-gather, for each rank
    latency: float  # of a message, seconds, assumed
    most_ranks: int  # that it connects
    source: str


ETHERNET = Network(
    "10 Gb/s Ethernet",
    10e9 / 8,
    10e9 / 8,
    50e-6,
    RANKS[-1],
    "its name; gloo over TCP, a rank a machine",
)
NVLINK = Network(
    "NVLink 4", 450e9, 450e9, 5e-6, 8,
    "NVIDIA H100 data sheet: 900 GB/s, both directions together",
)  # fmt: skip
INFINIBAND = Network(
    "InfiniBand NDR", 400e9 / 8, 8 * 400e9 / 8, 10e-6, RANKS[-1],
    "NVIDIA DGX H100 data sheet: a ConnectX-7 port of 400 Gb/s for each of 8 GPUs",
)  # fmt: skip
GPU_NETWORKS = (NVLINK, INFINIBAND)


@dataclass(frozen=True)
class Device:
    """One device's step on its own block of M x N similarities."""

    name: str
    compute: str  # where its seconds come from
    M: int
    N: int
    D: int
    teacher: bool
    dtype: str
    forward: float  # seconds
    backward: float
    networks: tuple[Network, ...]

    def network(self, ranks: int) -> Network:
        """The slowest that so many ranks need."""
        return next(n for n in self.networks if ranks <= n.most_ranks)


def measured(records: list[Record]) -> Device | None:
    """The largest batch that the package was timed on, with a teacher if there is one so large."""
    ours = [
        r
        for r in timed(records)
        if r["provider"] in OURS
        and r["case"]["threads"] is None
        and not r["case"].get("sigmoid", False)  # older records have no such field
    ]
    if not ours:
        return None

    def preference(r: Record) -> tuple:
        case = r["case"]
        wide = case["dtype"] == "float32"
        return case["M"] * case["N"], case["teacher"], wide, -OURS.index(r["provider"])

    best = max(ours, key=preference)
    case, machine = best["case"], best["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {best['threads']} threads"
    return Device(
        name=where,
        compute=f"measured on one: `{best['provider']}`, {case['name']} ({machine['date']}, "
        f"{machine['commit'] or machine['source']})",
        **{name: case[name] for name in ("M", "N", "D", "teacher", "dtype")},
        forward=best["seconds"]["forward"]["median"],
        backward=best["seconds"]["backward"]["median"],
        networks=GPU_NETWORKS if machine["gpu"] else (ETHERNET,),
    )


def at_peak(M: int = 4096, N: int = 4096, D: int = 768) -> Device:
    """An H100 whose matrix products run at the data sheet's peak and everything else is free.

    With a teacher there are two products forward and four backward (see bench/README.md).
    """
    product = 2 * M * N * D / 989.4e12
    return Device(
        name="H100 SXM at its stated peak (model, not measured)",
        compute="not measured: six products at the 989.4 TFLOP/s for dense bfloat16 of NVIDIA's "
        "H100 data sheet (half of the sparse figure), which no kernel reaches; at the bandwidths "
        "below the share of communication is an upper bound",
        M=M,
        N=N,
        D=D,
        teacher=True,
        dtype="bfloat16",
        forward=2 * product,
        backward=4 * product,
        networks=GPU_NETWORKS,
    )


@dataclass(frozen=True)
class Step:
    """One modelled step of W ranks."""

    ranks: int
    compute: float  # seconds
    sent: dict[str, int]  # bytes of a rank, by gather
    total: dict[str, float]  # seconds, by gather

    def efficiency(self, gather: str) -> float:
        """Share of the step that is compute."""
        return self.compute / self.total[gather]


def step(device: Device, ranks: int) -> Step:
    """A step of ``ranks`` devices, each with the device's own M x N rows."""
    network, W = device.network(ranks), ranks

    def sending(sent: float, messages: int) -> float:
        return sent / network.bandwidth + messages * network.latency

    def collectives(parts: dict[str, int], messages: int) -> float:
        gathered = sum(parts.get(name, 0) for name in ("agreement", "ids", "features"))
        exchanged = sum(parts.values()) - gathered
        return gathered / network.gather_bandwidth + sending(exchanged, messages)

    sent = {
        gather: bytes_sent(
            (device.M,) * W,
            (device.N,) * W,
            0,
            width=device.D,
            teacher_width=device.D if device.teacher else 0,
            feature_bytes=BYTES[device.dtype],
            gather=gather,
        )
        for gather in ("all", "ring")
    }
    f, b = device.forward, device.backward
    others = W - 1
    # Four gathers and five exchanges of a message to each other rank, two sums over a ring.
    at_once = W * (f + b) + collectives(sent["all"], 13 * others)
    # A ring has the same but for the gathers of features and the exchange of gradients.
    ring = dict(sent["ring"])
    block = ring.pop("features") / (2 * others) if others else 0.0
    gradient = ring.pop("gradients") / W
    passed = f + others * max(f, sending(block, 1))
    back = b + others * max(b, sending(block + gradient, 2))
    home = sending(gradient, 1) if others else 0.0  # the last step of the gradients
    around = passed + back + home + collectives(ring, 10 * others)
    return Step(
        ranks,
        W * (f + b),
        {gather: sum(parts.values()) for gather, parts in sent.items()},
        {"all": at_once, "ring": around},
    )


def devices(folder: Path) -> list[Device]:
    """Every device with a record, and the H100 at its peak."""
    found = [measured(read(path)) for path in results_files(folder)]
    return [device for device in found if device is not None] + [at_peak()]


def section(device: Device) -> str:
    """One device's table."""
    rows = []
    for W in RANKS:
        s = step(device, W)
        rows.append(
            [
                str(W),
                f"{W * device.M:,} x {W * device.N:,}",
                device.network(W).name if W > 1 else "-",
                seconds(s.compute),
                *(f"{s.sent[gather] / 1e6:,.1f} MB" for gather in ("all", "ring")),
                *(seconds(s.total[gather]) for gather in ("all", "ring")),
                *(f"{s.efficiency(gather):.1%}" for gather in ("all", "ring")),
            ]
        )
    head = ["ranks", "batch", "network", "compute"]
    columns = ("sent by a rank", "step", "efficiency")
    head += [f"{what}, {how}" for what in columns for how in ("all", "ring")]
    teacher = ", teacher" if device.teacher else ""
    return (
        f"**{device.name}.** {device.M:,} x {device.N:,} x {device.D} a rank{teacher}, "
        f"{device.dtype}. Compute {device.compute}.\n\n{table(head, rows)}"
    )


def page(folder: Path) -> str:
    """All tables, the assumptions, the sources."""
    networks = [
        [
            n.name,
            *(f"{b / 1e9:g} GB/s" for b in (n.bandwidth, n.gather_bandwidth)),
            f"{n.latency * 1e6:g} µs",
            n.source,
        ]
        for n in (ETHERNET, *GPU_NETWORKS)
    ]
    head = ["network", "rank to rank, a direction", "all-gather", "latency (assumed)"]
    head += ["source of the bandwidth"]
    parts = [
        "*A model, not a measurement over several devices.* `python -m "
        "bench.models.scaling_model` computes it from the records in bench/results. A rank is one "
        'process with one device. With `gather="all"` every rank gets the texts of all ranks at '
        'once; with `gather="ring"` they come block by block. Sent is what one rank sends in '
        "forward and backward. Efficiency is the time of computing over the time of the step: at "
        "100% the ranks wait for nothing.",
        *map(section, devices(folder)),
        table(head, networks),
        f"What is assumed:\n\n{ASSUMPTIONS}",
    ]
    return "\n\n".join(parts) + "\n"


def draw(folder: Path, out: Path) -> Path:
    """Efficiency against ranks as SVG, the same bytes for the same records."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "mxm_kernels"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for device in devices(folder):
        steps = [step(device, W) for W in RANKS]
        (line,) = axes.plot(
            RANKS, [s.efficiency("all") for s in steps], marker="o", label=f"{device.name}, all"
        )
        ring = [s.efficiency("ring") for s in steps]
        axes.plot(RANKS, ring, "--", marker="s", color=line.get_color(), label="the same, ring")
    axes.set(
        xscale="log", xticks=RANKS, xticklabels=RANKS, ylim=(0, 1.03), xlabel="ranks",
        ylabel="compute / step", title="Weak scaling of the loss: a model, not measured",
    )  # fmt: skip
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False, loc="lower left")
    path = out / "weak_scaling.svg"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def main() -> None:
    """Write the page and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    text = options.out / "model.md"
    text.write_text(page(options.results))
    print(text)
    print(draw(options.results, options.out))


if __name__ == "__main__":
    main()
