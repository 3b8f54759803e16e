"""One group from its cases to its records: prepare, gate, time, measure memory."""

from __future__ import annotations

from typing import Any

import torch

from bench import floor, timing
from bench.batch import Batch
from bench.cases import Case, Group
from bench.gate import Gate, WrongAnswerError
from bench.interleaved import note_turns
from bench.machine import free_bytes
from bench.memory import peaks
from bench.providers import Provider, matching
from bench.providers.dense import DENSE
from bench.results_file import Record
from bench.timing import PHASES, Entry, measure, ratios, summary
from mxm_kernels.backends import REGISTRY


def prepare(
    cases: tuple[Case, ...], prefixes: tuple[str, ...], device: torch.device
) -> tuple[list[Entry], list[tuple[Case, str, str]]]:
    """The entries that passed the gate, and (case, provider, reason) of those that are out."""
    entries: list[Entry] = []
    out: list[tuple[Case, str, str]] = []
    for case in cases:
        batch = Batch.make(case, device)
        gate = Gate(batch)
        for provider in matching(prefixes, case):
            try:
                entry = prepared(provider, gate, device)
            except Refused as reason:
                out.append((case, provider.name, str(reason)))
            else:
                entries.append(entry)
        if not prefixes or floor.NAME in prefixes:
            best, heights = floor.choose_floor(batch)
            chosen = {"block_height": best.height, "products_in": str(best.dtype).split(".")[1]}
            extra: dict[str, Any] = {**chosen, "seconds_per_1000_rows": heights}
            entries.append(Entry(floor.NAME, case, batch, best.step, extra=extra))
            if case.budget is not None:
                kept = floor.Floor(batch, best.height, keeps=True, dtype=best.dtype)
                extra = {**chosen, "copy_rate": floor.copy_rate()}
                entries.append(Entry(floor.KEPT, case, batch, kept.step, extra=extra))
    return entries, out


class Refused(Exception):  # noqa: N818  (an answer, not an error)
    """Why a provider is not timed on a case."""


def prepared(provider: Provider, gate: Gate, device: torch.device) -> Entry:
    """What is timed, once it passed the gate.

    Raises:
        Refused: why the provider is not timed.
    """
    case = gate.batch.case
    reason = provider.refuses(case, device)
    if reason is not None:
        raise Refused(reason)
    needs, free = provider.workspace(case), free_bytes(device)
    if needs > 0.9 * free:
        raise Refused(f"does not fit: about {needs / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
    batch = gate.batch.with_leaves()
    try:
        step = provider.prepare(batch)
        passed = gate.check(provider, batch, step)
    except WrongAnswerError as wrong:
        raise Refused(f"wrong answer: {wrong}") from wrong
    except torch.OutOfMemoryError as full:
        raise Refused("does not fit: out of memory") from full
    except Exception as failure:  # one that fails must not take the others' results along
        raise Refused(f"failed: {type(failure).__name__}: {str(failure)[:200]}") from failure
    return Entry(provider.name, case, batch, step, passed, phases=provider.phases)


def broken(records: list[Record]) -> list[str]:
    """What of this repository failed or was wrong; that of other packages is only recorded."""
    return [
        f"{r['provider']} on {r['case']['name']}: {r['refused']}"
        for r in records
        if r["provider"] in REGISTRY and is_fault(r.get("refused", ""))
    ]


def is_fault(refused: str) -> bool:
    """Whether a provider is out because it failed or was wrong, not for what it is."""
    return refused.startswith(("failed", "wrong answer"))


def run_group(group: Group, device: torch.device, benchmark: Any) -> list[Record]:
    """Time a group and measure its memory; the records, those of the refused included."""
    entries, out = prepare(group.cases, group.providers, device)
    threads = torch.get_num_threads()
    try:
        if entries:
            order = measure(entries, benchmark, group.seconds, group.fewest)
            note_turns(benchmark, entries, order)
        records = [timed_record(group.name, entry, entries) for entry in entries]
        for record, entry in zip(records, entries, strict=True):
            if entry.provider not in (floor.NAME, floor.KEPT):
                record.update(peaks(entry))
    finally:
        torch.set_num_threads(threads)  # a case may have its own number
    return records + [refused_record(group.name, *refused) for refused in out]


def timed_record(group: str, entry: Entry, entries: list[Entry]) -> Record:
    """Medians, quantiles and ratios of an entry that was timed."""
    kept = PHASES if entry.phases else ("both",)

    def medians(of: Entry) -> dict[str, float]:
        return {phase: summary(of.seconds[phase])["median"] for phase in kept}

    def against(name: str) -> dict[str, float]:
        same = [e for e in entries if e.case == entry.case and e.provider == name]
        return ratios(medians(entry), map(medians, same))

    return {
        **_head(group, entry.case, entry.provider),
        "repeats": len(entry.seconds["both"]),
        "seconds": {phase: summary(entry.seconds[phase]) for phase in kept},
        "to_dense": against(DENSE),
        "to_floor": against(floor.NAME),
        "to_kept_floor": against(floor.KEPT),
        "gate": entry.gate,
        **entry.extra,
    }


def memory_record(group: str, entry: Entry) -> Record:
    """The peak memory of an entry that was not timed."""
    head = _head(group, entry.case, entry.provider)
    return {**head, **peaks(entry), "gate": entry.gate}


def refused_record(group: str, case: Case, provider: str, reason: str) -> Record:
    """A provider that was not timed, and why."""
    return {**_head(group, case, provider), "refused": reason}


def _head(group: str, case: Case, provider: str) -> Record:
    threads = case.threads or timing.DEFAULT_THREADS
    return {"group": group, "provider": provider, "case": case.as_dict(), "threads": threads}
