"""How many programs a multiprocessor holds at once, by the vendors' documented limits.

NVIDIA: CUDA C++ programming guide, "Technical specifications per compute capability", and the
CUDA occupancy calculator for the units in which registers and shared memory are given out (256
registers a warp; 1 KiB of shared memory a program goes to the system). Tensor memory of 10.0: PTX
ISA, "Tensor memory", 512 columns. AMD: CDNA3 instruction set architecture, wave state: 512
vector registers a lane and SIMD in units of 8, 4 SIMDs, 8 waves a SIMD, 64 KiB of LDS.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiprocessor:
    """What the programs on one multiprocessor share."""

    registers: int  # of 32 bits
    register_unit: int  # given to a warp at a time
    shared: int  # bytes
    shared_reserved: int  # bytes of it that a program costs besides its own
    warps: int
    programs: int
    lanes: int  # threads of a warp
    tensor_columns: int | None = None


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(65536, 256, 164 << 10, 1 << 10, 64, 32, 32),
    "sm_90": Multiprocessor(65536, 256, 228 << 10, 1 << 10, 64, 32, 32),
    "sm_100": Multiprocessor(65536, 256, 228 << 10, 1 << 10, 64, 32, 32, tensor_columns=512),
    "gfx942": Multiprocessor(4 * 512 * 64, 8 * 64, 64 << 10, 0, 32, 16, 64),
}


def occupancy(
    target: str, registers: int, shared: int, warps: int, tensor_columns: int = 0
) -> tuple[int, str]:
    """Programs at once, and what limits them.

    ``registers`` of a thread, ``shared`` bytes, ``warps`` and ``tensor_columns`` of a program.
    """
    m = MULTIPROCESSORS[target]
    of_warp = -(-max(registers, 1) * m.lanes // m.register_unit) * m.register_unit
    # Registers belong to one of four schedulers, each with its own warps.
    room = {
        "registers": m.registers // 4 // of_warp * 4 // warps,
        "shared memory": m.shared // (shared + m.shared_reserved)
        if shared + m.shared_reserved
        else m.programs,
        "warps": m.warps // warps,
        "programs": m.programs,
    }
    if m.tensor_columns is not None and tensor_columns:
        room["tensor memory"] = m.tensor_columns // tensor_columns
    limit = min(room, key=lambda name: room[name])
    return room[limit], limit
