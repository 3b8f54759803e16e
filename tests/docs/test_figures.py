"""The picture of README: the committed SVG has the lines and words of the benchmark's results."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the docs extra is not installed")
pytest.importorskip("matplotlib", reason="the docs extra is not installed")

from bench.results_file import read
from docs.figures import time_and_memory
from docs.site_hooks import draw

COMMITTED = Path(time_and_memory.__file__).with_suffix(".svg")


def parts(svg):
    """The coordinates of each named line, and the words that are drawn."""
    lines = {
        name: [float(number) for number in re.findall(r"-?\d+\.?\d*", path)]
        for name, path in re.findall(r'<g id="((?:time|memory)-[^"]+)">\s*<path d="([^"]+)"', svg)
    }
    return lines, re.findall(r"<!-- (.*?) -->", svg)


def test_the_committed_picture_is_what_the_code_draws():
    """Parts, not bytes: another matplotlib writes its own outlines of letters."""
    lines, words = parts(COMMITTED.read_text())
    drawn_lines, drawn_words = parts(draw("time_and_memory").decode())
    assert len(lines) == 6
    assert lines.keys() == drawn_lines.keys()
    for name, numbers in lines.items():
        assert numbers == pytest.approx(drawn_lines[name], abs=0.01)
    assert words == drawn_words


def test_it_shows_every_size_that_was_measured():
    records = [r for r in read(time_and_memory.RESULTS) if r["provider"] == "dense eager"]
    (large,) = (record for record in records if record["group"] == "large")
    times = time_and_memory.lines(time_and_memory._seconds)
    assert times["dense eager"][-1] == (4920, large["seconds"]["both"]["median"])
    assert [images for images, _ in times["native"]] == [240, 420, 840, 1680, 3360, 4920, 16386]
    memory = time_and_memory.lines(time_and_memory._bytes)
    assert memory["dense eager"][-1] == (4920, large["peak_bytes"])


def test_what_the_text_below_it_says():
    """Below 64 MiB at every batch; torch.compile at three of them; 5 captions for 6 images."""
    memory = time_and_memory.lines(time_and_memory._bytes)
    assert max(size for _, size in memory["native"]) < 64 << 20
    assert len(time_and_memory.lines(time_and_memory._seconds)["dense torch.compile"]) == 3
    cases = [record["case"] for record in time_and_memory.chosen(read(time_and_memory.RESULTS))]
    assert {(case["views"], case["captions"]) for case in cases} == {(6, 5)}


def test_it_is_opaque():
    """On a dark page too."""
    background = re.search(r'<g id="patch_1">.*?fill: (#\w+)', COMMITTED.read_text(), re.DOTALL)
    assert background[1] == "#ffffff"
