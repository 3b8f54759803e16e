"""What a kernel's machine code does, read from NVIDIA's SASS or AMD's assembly.

Counts are of instructions in the code, except the two for each element of the tile: those follow
one tile from product to product along the shortest way, which is the one without a fallback,
and leave out the loops over D that multiply.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

MATRIX = re.compile(r"[HQ]G?MMA|UTC[A-Z]*MMA|v_mfma_")
# The exponential on the special-function unit: exp2, whatever the base in the source.
EXPONENTIAL = re.compile(r"MUFU\.EX2|v_exp_f32")
COUNTED = {
    "loads_16": r"LDG\S*\.128|LDGSTS\S*\.128|(global|buffer)_load_dwordx4",
    "loads_narrow": r"LDG(?!\S*\.128)|(global|buffer)_load(?!_dwordx4)",
    "stores_16": r"STG\S*\.128|(global|buffer)_store_dwordx4",
    "stores_narrow": r"STG(?!\S*\.128)|(global|buffer)_store(?!_dwordx4)",
    "copies_asynchronous": r"LDGSTS|buffer_load\S* .*\blds\b",
    "copies_tensor": r"UTMALDG",
    "exponentials": EXPONENTIAL.pattern,
    "atomics": r"ATOMG?\b|RED\b|REDG|(global|buffer|flat)_atomic",
}

_SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")
_SASS_LABEL = re.compile(r"^\s*(\.L_\w+):")
_SASS_TARGET = re.compile(r"`\((\.L_\w+)\)")
_AMD = re.compile(r"^\s+([a-z]+_[a-z]\w*)(.*)$")
_AMD_LABEL = re.compile(r"^(\.LBB\w+):")


@dataclass
class Block:
    """Instructions without a label or a jump between them."""

    code: list[str] = field(default_factory=list)
    jumps: list[str] = field(default_factory=list)  # labels
    falls: bool = True  # whether the block below may follow

    def count(self, pattern: re.Pattern[str]) -> int:
        """Instructions that begin like ``pattern``."""
        return sum(pattern.match(line) is not None for line in self.code)


def blocks(text: str) -> tuple[list[Block], dict[str, int]]:
    """The blocks in their order, and which of them each label names."""
    found, labels = [Block()], {}
    for line in text.splitlines():
        if label := _SASS_LABEL.match(line) or _AMD_LABEL.match(line):
            found.append(Block())
            labels[label[1]] = len(found) - 1
        elif instruction := _SASS.search(line):
            guard, name, operands = instruction.groups()
            found[-1].code.append(name + operands)
            conditional = guard is not None or re.match(r"\s+!?U?P\d", operands) is not None
            jump = _SASS_TARGET.search(operands)
            if name.startswith("BRA") and jump:
                found[-1].jumps.append(jump[1])
            if name.startswith(("BRA", "EXIT")):
                found[-1].falls = conditional
                found.append(Block())
        elif instruction := _AMD.match(line):
            name, operands = instruction.groups()
            found[-1].code.append(name + operands)
            if name.startswith(("s_cbranch", "s_branch", "s_endpgm")):
                found[-1].falls = name.startswith("s_cbranch")
                if not name.startswith("s_endpgm"):
                    found[-1].jumps.append(operands.split()[0])
                found.append(Block())
    return found, labels


class Flow:
    """Which block follows which."""

    def __init__(self, text: str) -> None:
        self.blocks, labels = blocks(text)
        self.after: list[list[int]] = []
        for place, block in enumerate(self.blocks):
            following = [labels[name] for name in block.jumps if name in labels]
            if block.falls and place + 1 < len(self.blocks):
                following.append(place + 1)
            self.after.append(following)
        # Blocks below the code's last exit, which wait for memory, jump back to where they were
        # left: that is no loop.
        leaving = [k for k, block in enumerate(self.blocks) if block.code and _leaves(block)]
        self.end = leaving[-1] if leaving else len(self.blocks)

    def product_loops(self) -> list[range]:
        """The innermost loops with a matrix instruction, as the places of their blocks."""
        loops = [
            range(first, last + 1)
            for last, following in enumerate(self.after[: self.end + 1])
            for first in following
            if first <= last and any(self.blocks[k].count(MATRIX) for k in range(first, last + 1))
        ]
        return [
            loop
            for loop in loops
            if not any(o != loop and o[0] in loop and o[-1] in loop for o in loops)
        ]

    def shortest(self, starts: Iterable[int], ends: set[int], closed: set[int]) -> list[int] | None:
        """The blocks behind ``starts`` up to one of ``ends``, by the fewest instructions."""
        reached = set(closed)
        queue = [
            (0, [following])
            for start in starts
            for following in self.after[start]
            if following not in starts
        ]
        heapq.heapify(queue)
        while queue:
            cost, way = heapq.heappop(queue)
            place = way[-1]
            if place in ends:
                return way
            if place not in reached:
                reached.add(place)
                cost += len(self.blocks[place].code)
                for following in self.after[place]:
                    heapq.heappush(queue, (cost, [*way, following]))
        return None

    def tile(self) -> list[Block]:
        """What one tile executes beside the loops that multiply; without one, all of the code."""
        loops = sorted(self.product_loops(), key=lambda loop: loop[0])
        if not loops:
            return self.blocks[: self.end + 1]
        inside = {place for loop in loops for place in loop}
        way: list[int] = []
        for before, behind in pairwise(loops):
            way += (self.shortest(before, set(behind), inside - set(behind)) or [-1])[:-1]
        # Round to the first product again, where tiles are walked; else from start to end. A loop
        # is entered from above.
        above = {p for p in range(loops[0][0]) if any(k in loops[0] for k in self.after[p])}
        again = self.shortest(loops[-1], above, inside)
        if again is None:
            last = {place for place, after in enumerate(self.after) if not after}
            leave = self.shortest(loops[-1], last, inside)
            way += [0, *(self.shortest([0], above, inside) or []), *(leave or [])]
        else:
            way += again
        return [self.blocks[place] for place in way]


def _leaves(block: Block) -> bool:
    return block.code[-1].startswith(("EXIT", "s_endpgm"))


def mix(text: str, lanes: int = 0, elements: int = 0) -> dict[str, object]:
    """Counts of a kernel's instructions.

    ``lanes`` is the number of threads of a program, ``elements`` that of the entries of its tile:
    without them nothing is counted for each entry.
    """
    flow = Flow(text)
    code = [line for block in flow.blocks for line in block.code]
    kinds: dict[str, int] = {}
    for line in code:
        if MATRIX.match(line):
            kinds[_kind(line)] = kinds.get(_kind(line), 0) + 1
    found: dict[str, object] = {"matrix": kinds}
    for name, pattern in COUNTED.items():
        compiled = re.compile(pattern)
        found[name] = sum(compiled.match(line) is not None for line in code)
    tile = flow.tile()
    if elements and tile:
        each = lanes / elements
        found["exponentials_each"] = round(sum(b.count(EXPONENTIAL) for b in tile) * each, 2)
        found["instructions_each"] = round(sum(len(b.code) for b in tile) * each, 1)
        found["shuffles_each"] = round(sum(b.count(re.compile("SHFL")) for b in tile) * each, 2)
    return found


def _kind(line: str) -> str:
    """Name of a matrix instruction with its shape."""
    name = line.split()[0]
    return name if name.startswith("v_") else ".".join(name.split(".")[:2])
