"""What this installation is and what it would do here: the facts behind ``python -m mxm_kernels``.

``gather`` returns plain dictionaries, lists, strings and numbers, which are the JSON; ``text``
words them for a person.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import mxm_kernels
from mxm_kernels import backends
from mxm_kernels.environment import self_check
from mxm_kernels.environment.machine import cores, cpu_model, devices

if TYPE_CHECKING:
    from mxm_kernels.backends.triton.tuned import Loaded

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PACKAGES = ("torch", "triton", "numpy")


def unavailable(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run, or None: its own reason, or what goes wrong before it is asked."""
    try:
        torch.empty(0, device=device, dtype=dtype)
        return backends.load(name).unavailable(device, dtype)
    except Exception as error:  # a broken installation of Triton, a dtype the device lacks
        return f"{type(error).__name__}: {error}"


def gather(check: bool = True) -> dict:
    """Every fact of the report; ``check=False`` leaves the self-check out."""
    here = devices()
    candidates = [
        (name, device, dtype)
        for device in here
        for name in backends.REGISTRY
        for dtype in DTYPES
        if unavailable(name, device, dtype) is None
    ]
    outcomes = self_check.run(candidates) if check else []
    return {
        "versions": _versions(),
        "devices": [_device(device) for device in here],
        "backends": [_availability(name, device) for device in here for name in backends.REGISTRY],
        "chosen": [_choice(device) for device in here],
        "native": _native(),
        "triton": [_launches(device) for device in here],
        "self_check": [outcome.as_dict() for outcome in outcomes] if check else None,
        "ok": all(outcome.passed for outcome in outcomes),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _versions() -> dict[str, str | None]:
    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "mxm_kernels": mxm_kernels.__version__,
        "python": platform.python_version(),
        **{package: installed(package) for package in _PACKAGES},
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "package": str(Path(mxm_kernels.__file__).parent),
        "executable": sys.executable,
    }


def _device(device: torch.device) -> dict:
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return {"device": "cpu", "name": cpu_model(), "cores": cores(), "capability": capability}
    if device.type != "cuda":
        return {"device": str(device), "name": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": str(device),
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
    }


def _availability(name: str, device: torch.device) -> dict:
    """The dtypes that a backend takes on a device, and why it takes no other."""
    reasons = {dtype: unavailable(name, device, dtype) for dtype in DTYPES}
    return {
        "backend": name,
        "device": str(device),
        "dtypes": [_name(dtype) for dtype, reason in reasons.items() if reason is None],
        "unavailable": {_name(d): reason for d, reason in reasons.items() if reason is not None},
    }


def _choice(device: torch.device) -> dict:
    chosen = {_name(dtype): backends.choose(None, device, dtype) for dtype in DTYPES}
    return {"device": str(device), "backends": chosen}


def _native() -> dict | None:
    """The instruction set that the native backend runs with; None where it cannot run."""
    if unavailable("native", torch.device("cpu"), torch.float32) is not None:
        return None
    import mxm_kernels._native as extension

    return {
        "level": extension.levels()[0],
        "levels": extension.levels(),
        "bfloat16_units": extension.units(),
        "threads": torch.get_num_threads(),
    }


def _launches(device: torch.device) -> dict:
    """The row of Triton's launch table for a device; on a CPU that of the interpreter."""
    nothing = {"device": str(device), "used": False, "row": None, "rows": [], "launches": []}
    nothing["measured"] = None
    if device.type not in ("cpu", "cuda"):
        return nothing
    try:
        from mxm_kernels.backends.triton import launch, settings, tuned
    except ImportError:  # the reason is among those of the backends
        return nothing
    row, used = launch.target(device), unavailable("triton", device, torch.float32) is None
    launches = [
        {
            "kind": kind,
            "teacher": teacher,
            **asdict(setting.pick(teacher)),
        }
        for kind, setting in settings.SETTINGS[row].items()
        for teacher in (False, True)
        if not (teacher and kind == "sigmoid_gradient")
    ]
    return {
        "device": str(device),
        "used": used,
        "row": row,
        "rows": list(settings.SETTINGS),
        "launches": launches,
        "measured": _measured(tuned.load(*launch.identity(device))) if used else None,
    }


def _measured(loaded: Loaded) -> dict:
    """The settings that ``python -m mxm_kernels tune`` measured, and where they come from."""
    from mxm_kernels.backends.triton import tuned

    return {
        "file": str(loaded.path),
        "digest": loaded.digest,
        "launches": [
            {"for": tuned.describe(key), **asdict(found)} for key, found in loaded.launches.items()
        ],
        "elsewhere": loaded.elsewhere,
        "ignored": loaded.ignored,
    }


def text(facts: dict) -> str:
    """The report for a person."""
    parts = [
        ("versions", _table([(k, v or "none") for k, v in facts["versions"].items()])),
        ("devices", _table([(d["device"], _describe(d)) for d in facts["devices"]])),
        ("backends", _backends_text(facts["backends"])),
        ("chosen by backend=None", _table([_choice_text(c) for c in facts["chosen"]])),
        ("native", _native_text(facts["native"])),
        ("triton", "\n".join(_launch_text(row) for row in facts["triton"])),
        ("self-check", _check_text(facts["self_check"])),
    ]
    return "\n\n".join(f"{title}\n{_indent(body)}" for title, body in parts)


def _indent(body: str) -> str:
    return "\n".join(f"  {line}" for line in body.splitlines())


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}  {right}" for left, right in rows)


def _describe(device: dict) -> str:
    details = [device["name"]]
    if "cores" in device:
        details.append(f"{device['cores']} cores")
    if "memory_bytes" in device:
        details.append(f"{device['memory_bytes'] / 2**30:.0f} GiB")
    if "capability" in device:
        details.append(f"capability {device['capability']}")
    return ", ".join(details)


def _backends_text(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        able = ", ".join(row["dtypes"]) or "cannot run"
        lines.append((f"{row['backend']} on {row['device']}", able))
        for reason in dict.fromkeys(row["unavailable"].values()):
            lines.append(("", f"{', '.join(_with(row['unavailable'], reason))}: {reason}"))
    return _table(lines)


def _with(reasons: dict[str, str], reason: str) -> list[str]:
    return [dtype for dtype, given in reasons.items() if given == reason]


def _choice_text(choice: dict) -> tuple[str, str]:
    return choice["device"], ", ".join(f"{k}: {v}" for k, v in choice["backends"].items())


def _native_text(native: dict | None) -> str:
    if native is None:
        return "not built: see its reason above"
    units = ", ".join(native["bfloat16_units"]) or "none, its products are float32"
    return (
        f"level {native['level']} of {', '.join(native['levels'])}; "
        f"units for bfloat16: {units}; threads: {native['threads']}"
    )


def _launch_text(row: dict) -> str:
    if row["row"] is None:
        return f"{row['device']}: no launch settings, see the reason above"
    use = "" if row["used"] else "; not used, see the reason above"
    head = f"{row['device']}: row {row['row']} of {', '.join(row['rows'])}{use}"
    lines = [
        f"  {entry['kind'].replace('_', ' ')}{', teacher' if entry['teacher'] else ''}:"
        f" {_tile_text(entry)}"
        for entry in row["launches"]
    ]
    return "\n".join([head, *lines, *_measured_lines(row["measured"])])


def _tile_text(entry: dict) -> str:
    return (
        f"tile {entry['rows']} x {entry['cols']}, depth {entry['depth']}, warps {entry['warps']}, "
        f"stages {entry['stages']}, groups of {entry['group']}"
    )


def _measured_lines(measured: dict | None) -> list[str]:
    """Lines that say which measured launch settings are in force, and from which file."""
    if measured is None:
        return []
    if measured["digest"] is None:
        reason = "; ".join(measured["ignored"]) or "`python -m mxm_kernels tune` measures them"
        return [f"  none measured on this GPU ({measured['file']}): {reason}"]
    lines = [
        f"  measured on this GPU, instead of the table's, from {measured['file']} "
        f"(sha256 {measured['digest']}): {len(measured['launches'])}"
    ]
    lines += [f"    {entry['for']}: {_tile_text(entry)}" for entry in measured["launches"]]
    if measured["elsewhere"]:
        lines.append(f"    not in force, of other GPUs or versions: {measured['elsewhere']}")
    return lines + [f"    ignored: {reason}" for reason in measured["ignored"]]


def _check_text(outcomes: list[dict] | None) -> str:
    if outcomes is None:
        return "left out"
    rows = []
    for outcome in outcomes:
        label = f"{outcome['backend']} on {outcome['device']}, {outcome['dtype']}, "
        worst = max((e for e in outcome["errors"].values() if e is not None), default=0.0)
        result = f"ok, error {worst:.1e}" if outcome["passed"] else f"FAILED: {outcome['failure']}"
        rows.append((label + outcome["batch"], result))
    failed = sum(not outcome["passed"] for outcome in outcomes)
    seconds = sum(outcome["seconds"] for outcome in outcomes)
    verdict = f"{failed} of {len(outcomes)} FAILED" if failed else f"all {len(outcomes)} ok"
    return f"{_table(rows)}\n{verdict}, {seconds:.1f} s"
