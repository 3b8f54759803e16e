"""A backend together with the device that a test runs it on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class BackendUnderTest:
    """One backend on one device."""

    name: str
    device: torch.device

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Feature dtypes that it takes."""
        wide = (torch.float64,) if self.name == "blocked" else ()
        return (torch.float32, *LOW, *wide)

    @property
    def interpreted(self) -> bool:
        """Whether its kernels are interpreted on the CPU: slow, and their memory is NumPy's."""
        return self.name == "triton" and self.device.type == "cpu"

    @property
    def most_rows(self) -> int:
        """How many rows a drawn case may have: more than one tile, without taking minutes."""
        return 400 if self.device.type == "cuda" else 40

    def __str__(self) -> str:
        return f"{self.name}-{self.device.type}"
