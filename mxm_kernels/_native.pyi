"""The C++ extension; mxm_kernels/csrc/module.cpp says what the numbers are."""

CHUNK: int  # columns that forward sums at once,
STRIP: int  # and rows
LINE: int  # 16-bit numbers in a line of the cache
FORMULAS: list[str]  # that row_losses knows

def levels() -> list[str]: ...
def advise_large_pages(address: int, size: int, /) -> None: ...
def units() -> list[str]: ...
def exponential(level: str, source: int, target: int, length: int, /) -> None: ...
def softplus(level: str, source: int, target: int, length: int, /) -> None: ...
def drawn_weights(
    seed: int,
    offsets: int,
    rows: int,
    rounds: int,
    weights: int,
    threads: int,
    /,
) -> None: ...
def row_losses(
    level: str,
    formula: str,
    constant: float,
    hard: float,
    soft: float,
    smoothing: float,
    arrays: list[int],
    rows: int,
    positives: int,
    parameter_stride: int,
    made: list[int],
    threads: int,
    /,
) -> None: ...

class Problem:
    @staticmethod
    def make(
        rows: int,
        cols: int,
        scale: float,
        teacher_scale: float,
        has_soft: bool,
        image_groups: int,
        text_groups: int,
        image_offsets: int,
        pair_texts: int,
        threads: int,
        /,
    ) -> Problem: ...
    def tell(self, rules: list[int], /) -> None: ...

class Features:
    @staticmethod
    def make(
        x: int, y: int, D: int, teacher_x: int, teacher_y: int, teacher_D: int, /
    ) -> Features: ...

class ForwardPass:
    def __init__(
        self, level: str, problem: Problem, positives: int, diagnostics: bool, neg_sum: bool, /
    ) -> None: ...
    def keep(self, *addresses: int) -> None: ...
    def sweep(self, *tile: int) -> None: ...
    def fused(self, unit: str, features: Features, /) -> None: ...
    def finish(self, *statistics: int) -> None: ...
    def finish_sums(self, *statistics: int) -> None: ...
    def finish_removed(self, *statistics: int) -> None: ...
    def finish_diagnostics(self, *statistics: int) -> None: ...

class BackwardPass:
    unit: float
    dscale: float
    def __init__(
        self,
        level: str,
        problem: Problem,
        statistics: list[int],
        upstream: list[int],
        offsets: bool,
        /,
    ) -> None: ...
    def sweep(self, *tile: int) -> None: ...
    def read(self, *addresses: int) -> None: ...
    def sweep_to(self, dS: int, dS_stride: int, *tile: int) -> None: ...
    def fused(self, unit: str, features: Features, dx: int, dy: int, /) -> None: ...
    def finish_offsets(self, doffsets: int, /) -> None: ...

class SigmoidForwardPass:
    def __init__(self, level: str, problem: Problem, bias: float, positives: int, /) -> None: ...
    def sweep(self, *tile: int) -> None: ...
    def finish(self, r_rows: int, r_cols: int, /) -> None: ...

class SigmoidBackwardPass:
    unit: float
    dscale: float
    dbias: float
    def __init__(
        self,
        level: str,
        problem: Problem,
        bias: float,
        positives: int,
        upstream: list[int],
        offsets: bool,
        /,
    ) -> None: ...
    def sweep(self, *tile: int) -> None: ...
    def finish_offsets(self, doffsets: int, /) -> None: ...

class SigmoidLossPass:
    unit: float
    loss: float
    dscale: float
    dbias: float
    def __init__(
        self,
        level: str,
        problem: Problem,
        bias: float,
        scratch: int,
        weights: list[int],
        offsets: bool,
        /,
    ) -> None: ...
    def sweep(self, *tile: int) -> None: ...
    def finish_offsets(self, doffsets: int, /) -> None: ...
