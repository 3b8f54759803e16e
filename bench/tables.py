"""Markdown tables made of records."""

from __future__ import annotations

from collections.abc import Callable

from bench import floor, summary, targets, words
from bench.cases import Case
from bench.markdown import seconds, table
from bench.providers.dense import DENSE
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
    return table(["case", *map(words.name, providers)], rows)


def _products_alone(record: Record) -> bool:
    return record["provider"] in (floor.NAME, floor.KEPT)


def speed(records: list[Record]) -> str:
    """Forward and backward together: median, and the speed beside dense eager."""

    def cell(record: Record) -> str:
        time, ratio = seconds(record["seconds"]["both"]["median"]), record["to_dense"]
        if not ratio or record["provider"] == DENSE:
            return time
        return f"{time}, {words.faster(ratio['both'])}"

    note = (
        "Time of forward and backward together (the median), and how much faster or slower than "
        f"{words.EAGER} it is. A time alone: {words.EAGER} was not timed on this case.\n\n"
    )
    return note + _grid([r for r in timed(records) if not _products_alone(r)], cell)


def products(records: list[Record]) -> str:
    """Forward and backward together beside the step's matrix products alone."""
    note = (
        "The second and third columns are the matrix products of the step, made by PyTorch into "
        "memory that is there already: their number and their time. The other columns say how much "
        "more or less time a whole step takes. The products compute S and T in forward and again "
        "in backward. Where memory was allowed for S and T, a second line has the products of a "
        "step that keeps them, and how fast the machine copies memory.\n\n"
    )
    providers = list(dict.fromkeys(r["provider"] for r in timed(records) if not _products_alone(r)))
    rows: dict[tuple[str, str], list[str]] = {}
    for alone in filter(_products_alone, timed(records)):
        case = Case.of_record(alone["case"])
        kept = alone["provider"] == floor.KEPT
        count = case.products - (2 if case.teacher else 1) * kept
        time = seconds(alone["seconds"]["both"]["median"])
        time += f", copies {alone['copy_rate'] / 1e9:.3g} GB/s" if alone.get("copy_rate") else ""
        ratio = "to_kept_floor" if kept else "to_floor"
        found = {
            r["provider"]: words.more_time(r[ratio]["both"])
            for r in timed(records)
            if (r["group"], r["case"]["name"]) == (alone["group"], case.name) and r.get(ratio)
        }
        row = [case.name, str(count), time, *(found.get(p, "") for p in providers)]
        rows.setdefault((case.name, ratio), row)  # of two groups the more important one
    head = ["case", "products", "their time", *map(words.name, providers)]
    return note + table(head, rows.values())


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
        who, repeats = words.name(record["provider"]), f"{record['repeats']}"
        rows.append([record["case"]["name"], who, repeats, *spread])
    note = "The median of the repeats. In brackets: eight of ten repeats lie between these.\n\n"
    head = ["case", "who", "repeats", "forward", "backward", "both"]
    return note + table(head, rows)


def memory(records: list[Record]) -> str:
    """Peak memory of one step beyond inputs and gradients."""
    measured = [r for r in records if "peak_bytes" in r]
    note = (
        "The most memory that torch's allocator gave out in a step, without inputs and gradients. "
        "What the C++ of `native` takes itself is not in it.\n\n"
    )
    return note + _grid(measured, lambda record: words.size(record["peak_bytes"]))


def rounds(records: list[Record]) -> str:
    """Time against the number of rounds, beside the time of one."""
    rows = []
    group = [r for r in timed(records) if r["group"].startswith("rounds")]
    for record in group:
        one = [
            r["seconds"]["both"]["median"]
            for r in group
            if (r["group"], r["provider"]) == (record["group"], record["provider"])
            and r["case"]["rounds"] == 1
        ]
        if one and not _products_alone(record):
            value = record["seconds"]["both"]["median"]
            beside = "" if value == one[0] else words.more_time(value / one[0])
            who = words.name(record["provider"])
            rows.append([record["case"]["name"], who, seconds(value), beside])
    note = "R is the number of random rounds; the expectation draws nothing.\n\n"
    return note + table(["case", "who", "forward and backward", "beside one round"], rows)


def refused(records: list[Record]) -> str:
    """Who was not timed, and why."""
    cases: dict[tuple[str, str], list[str]] = {}
    for r in records:
        if r.get("refused", NOT_THIS_LOSS) != NOT_THIS_LOSS:
            reason = r["refused"].replace("|", "/").replace("\n", " ")
            cases.setdefault((r["provider"], reason), []).append(r["case"]["name"])
    rows = [
        [words.name(provider), reason, names[0] if len(names) == 1 else f"{len(names)} cases"]
        for (provider, reason), names in cases.items()
    ]
    return table(["who", "why it has no time", "on"], rows)


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
    "summary": summary.table,
    "targets": targets.table,
    "speed": speed,
    "products": products,
    "rounds": rounds,
    "memory": memory,
    "phases": phases,
    "refused": refused,
}
TITLES = {
    "products": "Beside the matrix products alone",
    "memory": "Peak memory",
    "phases": "Forward and backward apart",
    "refused": "Not timed",
}
