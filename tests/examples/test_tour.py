"""The tour's cells run in order, and their numbers and figures are what its text says."""

import ast
import re
import sys
import time

import pytest
import torch
from PIL import Image

from examples.tour.__main__ import CELLS, main
from reference.mfh import group_matrix, hard_rows_expected

MOST_SECONDS = 120  # of CPU time: other processes may be busy


def sources():
    """The code of each cell, as a notebook runs it."""
    _, *cells = re.split(r"^(?=# %%)", CELLS.read_text(), flags=re.MULTILINE)
    return [cell for cell in cells if not cell.startswith("# %% [markdown]")]


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The variables after all cells, and the seconds that they took."""
    import matplotlib

    matplotlib.use("Agg")
    namespace = {"FIGURES": tmp_path_factory.mktemp("tour") / "figures"}
    path, start = list(sys.path), time.process_time()
    for number, source in enumerate(sources()):
        exec(compile(source, f"cell {number}", "exec"), namespace)
    seconds = time.process_time() - start
    sys.path[:] = path
    return namespace, seconds


def test_it_takes_less_than_two_minutes(tour):
    assert tour[1] < MOST_SECONDS


def test_the_loss_is_that_of_the_dense_computation_and_of_the_reference(tour):
    names = tour[0]
    loss, dense = names["loss"].item(), names["dense"].item()
    assert loss == pytest.approx(dense, rel=1e-6)
    S, positive = names["S"], names["positive"]
    assert S.dtype == torch.float64 and len(S) > 700 and S.shape[1] > 900
    assert torch.equal(positive, group_matrix(names["image_ids"], names["text_ids"]))
    for matrix, same in ((S, positive), (S.T, positive.T)):  # the reference goes row by row
        expected = hard_rows_expected(matrix[:40], same[:40])
        torch.testing.assert_close(names["dense_rows"](matrix, same)[:40], expected)


def test_the_spread_falls_with_the_rounds_towards_the_expectation(tour):
    names = tour[0]
    spread, drawn = names["spread"], names["drawn"]
    assert list(spread) == [1, 4, 16, 64, 256]
    assert sorted(spread.values(), reverse=True) == list(spread.values())
    # By the root of R: of 32 draws a standard deviation is known to 13 %.
    assert spread[1] / spread[256] == pytest.approx(16, rel=0.6)
    for R, losses in drawn.items():
        error = abs(losses.mean().item() - names["loss"].item())
        assert error < 4 * spread[R] / len(losses) ** 0.5


def test_training_lowers_the_loss_and_raises_recall(tour):
    names = tour[0]
    assert len(names["losses"]) == 60
    assert names["losses"][-1] < names["losses"][0] / 5
    for direction in ("text_to_image", "image_to_text"):
        before, after = (getattr(names[when], direction).recall for when in ("before", "after"))
        assert all(after[k] > before[k] + 0.08 for k in (1, 5, 10))
    assert not {i.name for i in names["training"]} & {i.name for i in names["held_out"]}


@pytest.mark.parametrize("name", ["rounds", "training", "retrieval"])
def test_the_figures_show_something(tour, name):
    with Image.open(tour[0]["FIGURES"] / f"{name}.png") as image:
        assert image.width > 700
        darkest, lightest = image.convert("L").getextrema()
        colours = image.convert("RGB").getcolors(1 << 24)
    assert (darkest, lightest) == (0, 255)
    assert len(colours) > 100
    assert 0.02 < 1 - max(count for count, _ in colours) / (image.width * image.height) < 0.9


def test_right_answers_are_marked(tour):
    """As many green frames as there are right pictures."""
    names, figure = tour[0], tour[0]["figure"]
    data, shown = names["test_data"], [(2 * i + 1) * 60 // 16 for i in range(8)]
    right = 0
    for place in shown:
        query = int((data.text_ids == place).nonzero()[0])
        best = (names["images"] @ names["texts"][query]).topk(5).indices
        right += int((data.image_ids[best] == place).sum())
    edges = [axes.spines["top"].get_edgecolor() for axes in figure.axes if axes.images]
    green = [edge for edge in edges if edge[1] > edge[0] + 0.2]
    assert len(edges) == 40 and len(green) == right


def test_every_cell_is_code_of_its_own():
    assert len(sources()) >= 7
    for source in sources():
        ast.parse(source)


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Write other cells for the command to run."""

    def write(source):
        path = tmp_path / "cells.py"
        path.write_text(source)
        monkeypatch.setattr("examples.tour.__main__.CELLS", path)

    return write


def test_the_command_hands_the_folder_on(cells, tmp_path, capsys):
    cells("FIGURES.mkdir()\n(FIGURES / 'a.png').touch()")
    assert main([str(tmp_path / "mine")]) == 0
    assert capsys.readouterr().out == f"Figures: {tmp_path / 'mine' / 'a.png'}\n"


def test_a_missing_package_is_named(cells, tmp_path, capsys):
    cells("import no_such_package.inside")
    assert main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "needs the package no_such_package, which is not installed" in message
    assert "pip install -e '.[examples]'" in message


def test_an_interruption_is_a_line(cells, tmp_path, capsys):
    cells("raise KeyboardInterrupt")
    assert main([str(tmp_path)]) == 130
    message = capsys.readouterr().err
    assert message == (
        "\nInterrupted. Run the same command again: the tour starts from the beginning.\n"
    )
