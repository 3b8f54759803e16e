"""A bar in a terminal, lines elsewhere."""

import io

from mxm_kernels.tuning import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_one_line(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    stream = Terminal()
    bar = progress.Progress(60.0, stream)
    now[0] = 130.0
    bar("compiling 7/9")
    now[0] = 200.0  # late
    bar("timing")
    bar.end()
    first, second = stream.getvalue().split("\r")[1:]
    assert first == f"[{'#' * 15}{'-' * 15}]  30 of 60 s  compiling 7/9\x1b[K"
    assert second == f"[{'#' * 30}] 100 of 60 s  timing\x1b[K\n"


def test_elsewhere_a_line_every_ten_seconds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    stream = io.StringIO()
    bar = progress.Progress(60.0, stream)
    for second in range(0, 25, 5):
        now[0] = float(second)
        bar(f"at {second}")
    bar.end()
    assert stream.getvalue().splitlines() == [
        f" {second:2} of 60 s  at {second}" for second in (0, 10, 20)
    ]
