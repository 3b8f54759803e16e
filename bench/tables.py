"""Markdown tables made of records."""

from __future__ import annotations

from collections.abc import Callable

from bench import targets
from bench.markdown import seconds, table
from bench.results_file import Record, timed

NOT_THIS_LOSS = "does not compute this loss"


def _grid(records: list[Record], cell: Callable[[Record], str]) -> str:
    """Cases down, providers across."""
    providers = list(dict.fromkeys(r["provider"] for r in records))
    cases = dict.fromkeys((r["group"], r["case"]["name"]) for r in records)
    found = {(r["group"], r["case"]["name"], r["provider"]): cell(r) for r in records}
    seen = set()
    rows = []
    for group, case in cases:
        if case not in seen:  # a case of two groups is shown once, as in the more important one
            seen.add(case)
            rows.append([case] + [found.get((group, case, p), "") for p in providers])
    return table(["case", *providers], rows)


def _mebibytes(value: int) -> str:
    return f"{value / 2**20:,.0f} MiB" if value >= 10 << 20 else f"{value / 2**20:.1f} MiB"


def speed(records: list[Record]) -> str:
    """Forward and backward together: median (x floor, x dense eager)."""

    def cell(record: Record) -> str:
        text = seconds(record["seconds"]["both"]["median"])
        over = [f"{record[k]['both']:.3g}" if record[k] else "-" for k in ("to_floor", "to_dense")]
        if record["provider"].startswith("floor"):
            rate = record.get("copy_rate")
            return f"{text}, copies {rate / 1e9:.1f} GB/s" if rate else text
        kept = record.get("to_kept_floor")
        over += [f"{kept['both']:.3g} of kept"] if kept else []
        return f"{text} ({', '.join(over)})"

    note = (
        "Median of forward and backward (as a multiple of the floor, of dense eager; with room to "
        "keep S and T, of the floor that has them).\n\n"
    )
    return note + _grid(timed(records), cell)


def phases(records: list[Record]) -> str:
    """Median and quantiles of each phase."""
    rows = []
    for record in timed(records):
        spread = []
        for phase in ("forward", "backward", "both"):
            s = record["seconds"].get(phase)
            spread.append(
                ""
                if s is None
                else f"{seconds(s['median'])} ({seconds(s['q10'])} to {seconds(s['q90'])})"
            )
        repeats = f"{record['repeats']}"
        rows.append([record["case"]["name"], record["provider"], repeats, *spread])
    note = "Median (0.1 to 0.9 quantile).\n\n"
    head = ["case", "provider", "repeats", "forward", "backward", "both"]
    return note + table(head, rows)


def memory(records: list[Record]) -> str:
    """Peak memory of one step beyond inputs and gradients."""
    measured = [r for r in records if "peak_bytes" in r]
    note = "Peak memory of forward and backward beyond inputs and gradients.\n\n"
    return note + _grid(measured, lambda record: _mebibytes(record["peak_bytes"]))


def rounds(records: list[Record]) -> str:
    """Time against the number of rounds, as a multiple of one round."""
    rows = []
    group = [r for r in timed(records) if r["group"].startswith("rounds")]
    for record in group:
        one = [
            r["seconds"]["both"]["median"]
            for r in group
            if (r["group"], r["provider"]) == (record["group"], record["provider"])
            and r["case"]["rounds"] == 1
        ]
        if one and not record["provider"].startswith("floor"):
            value = record["seconds"]["both"]["median"]
            ratio = f"{value / one[0]:.3f}"
            rows.append([record["case"]["name"], record["provider"], seconds(value), ratio])
    return table(["case", "provider", "both", "against R 1"], rows)


def refused(records: list[Record]) -> str:
    """Who was not timed, and why."""
    cases: dict[tuple[str, str], list[str]] = {}
    for r in records:
        if r.get("refused", NOT_THIS_LOSS) != NOT_THIS_LOSS:
            reason = r["refused"].replace("|", "/").replace("\n", " ")
            cases.setdefault((r["provider"], reason), []).append(r["case"]["name"])
    rows = [
        [provider, reason, names[0] if len(names) == 1 else f"{len(names)} cases"]
        for (provider, reason), names in cases.items()
    ]
    return table(["provider", "why it has no time", "on"], rows)


def machine(records: list[Record]) -> str:
    """Where and with what the records were measured."""
    rows = []
    for m in {
        r["machine"]["commit"] or r["machine"]["source"]: r["machine"] for r in records
    }.values():
        where = f"{m['gpu']}, " if m["gpu"] else ""
        where += f"{m['cpu']}, {m['cores']} cores, {m['memory_bytes'] / 2**30:.0f} GiB"
        versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
        commit = m["commit"] or f"source {m['source']}"
        rows.append([where, f"Python {m['python']}, {versions}", commit, m["date"]])
    return table(["machine", "versions", "commit", "date"], rows)


TABLES: dict[str, Callable[[list[Record]], str]] = {
    "machine": machine,
    "targets": targets.table,
    "speed": speed,
    "rounds": rounds,
    "memory": memory,
    "phases": phases,
    "refused": refused,
}
