"""What a run found, in some thousand letters: printed last, since an output keeps its end.

    python -m bench.gpu.summary OUT

prints it again from the files, which have everything that stands here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.gpu.results import Results

MOST = 8000  # letters
SHOWN_PARTS = 7


def text(out: Path) -> str:
    """The summary of the files in ``out``."""
    files = {path.stem: Results(path).read() for path in sorted(out.glob("*.json"))}
    parts = [
        _ceilings(files.get("ceilings", {})),
        _right(files.get("right", {})),
        _headline("headline", files.get("headline", {})),
        _sweep(files.get("sweep", {})),
        _headline("again, with the winners", files.get("again", {})),
        _peers(files.get("peers", {})),
        _counters(files.get("headline", {})),
    ]
    whole = "\n".join(part for part in parts if part)
    return whole if len(whole) <= MOST else whole[:MOST] + "\n(cut here: the files have the rest)"


def _ceilings(file: dict[str, Any]) -> str:
    found = file.get("constants", {})
    values = [f"{name} {of['value']:.4g} {of['unit']}" for name, of in found.items()]
    return f"ceilings: {'; '.join(values)}" if values else ""


def _right(file: dict[str, Any]) -> str:
    lines = []
    if counts := file.get("tests"):
        lines.append(
            f"right: {counts['ran']} of {counts['listed']} tests ran, {counts['passed']} passed, "
            f"{counts['failed']} failed, {counts['skipped']} skipped, "
            f"{len(counts['missing'])} missing"
        )
        lines += [
            f"  FAILED {one['test']}: {one['words'][-300:]}" for one in counts["first failures"]
        ]
        lines += [f"  MISSING {name}" for name in counts["missing"][:5]]
    if "sums in place" in file:
        lines.append(f"sums in place: {str(file['sums in place'])[:500]}")
    if "memcheck" in file:
        lines.append(f"memcheck: {file['memcheck'][-500:]}")
    return "\n".join(lines)


def _headline(title: str, file: dict[str, Any]) -> str:
    lines = [f"{title}:"] if "lines" in file else []
    for name, line in file.get("lines", {}).items():
        if "refused" in line:
            lines.append(f"  {name}: {line['refused'][:200]}")
            continue
        ours, least = (line["milliseconds"][who]["both"] for who in ("ours", "floor"))
        share = line.get("share_of_product_8192")
        lines.append(
            f"  {name}: {ours:.3f} ms, floor {least:.3f} ms ({line['to_floor']:.2f} x)"
            + ("" if share is None else f", {share:.0%} of the 8192-cubed rate")
        )
        parts = [
            of for phase in line.get("parts_milliseconds", {}).values() for of in phase.items()
        ]
        parts.sort(key=lambda of: -of[1])
        if parts:
            lines.append("    " + ", ".join(f"{n} {ms:.2f}" for n, ms in parts[:SHOWN_PARTS]))
    return "\n".join(lines)


def _sweep(file: dict[str, Any]) -> str:
    lines = []
    for name, cell in file.get("compile", {}).items():
        lines.append(
            f"compiled, {name}: {len(cell['right'])} right and {len(cell['faults'])} faulty "
            f"of {cell['candidates']}"
        )
    for name, cell in file.get("sweep", {}).items():
        for race in cell["races"][-1:]:
            b, table = race["best"][0], race["milliseconds_of_table"]
            against = "wrong" if table is None else f"{table:.3f} ms"
            lines.append(
                f"sweep, {name}: {b['milliseconds']:.3f} ms (table {against}) at {b['rows']} x "
                f"{b['cols']} x {b['depth']}, {b['warps']} warps, {b['stages']} stages, "
                f"groups of {b['group']}"
            )
    for name, times in file.get("variants", {}).items():
        lines.append(f"{name}: " + ", ".join(f"{how} {ms:.2f} ms" for how, ms in times.items()))
    return "\n".join(lines)


def _peers(file: dict[str, Any]) -> str:
    lines = []
    for name, duel in file.get("peers", {}).items():
        if "refused" in duel:
            lines.append(f"peers: {name}: {duel['refused'][:120]}")
        else:
            lines.append(f"peers: ours takes {duel['ours_over_theirs']:.3f} x {name}")
    if million := file.get("million"):
        checked = "checked" if "errors" in million else "not checked"
        gigabytes = million["peak_bytes"] / 1e9
        lines.append(
            f"million: {million['case']}: {million['seconds']:.2f} s, {gigabytes:.2f} GB, {checked}"
        )
    return "\n".join(lines)


def _counters(file: dict[str, Any]) -> str:
    found = file.get("counters", {})
    return f"counters: {found}"[:1500] if found else ""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of a run's files")
    folder = parser.parse_args().out
    if not any(folder.glob("*.json")):
        parser.error(f"out: expected a folder with a run's JSON files, got {folder}")
    print(text(folder))


if __name__ == "__main__":
    main()
