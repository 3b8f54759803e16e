"""The study of offsets, ids and the filter: the committed table, and that each input is timed."""

import json
from pathlib import Path

import pytest
import torch

from bench.batch import Batch
from bench.cases import Case
from bench.studies import told

RESULTS = Path(__file__).parents[3] / "bench" / "results"
CASE = Case(24, 20, 16)


def test_the_page_is_of_the_committed_numbers():
    committed = json.loads((RESULTS / "told.json").read_text())
    assert told.page(committed) == (RESULTS / "told.md").read_text()
    found = {(r["loss"], *told._key(r), r["input"]) for r in committed}
    lines = len(told.cases()) * len(told.BACKENDS)
    assert (
        len(found)
        == len(committed)
        == lines * sum(len(told.inputs_of(loss)) for loss in told.LOSSES.values())
    )


@pytest.mark.parametrize("name", told.LOSSES)
def test_a_line_is_measured(name):
    records = told.measure(name, CASE, "blocked", 0.05)
    assert [r["input"] for r in records] == list(told.inputs_of(told.LOSSES[name]))
    assert records[0]["ratio"] == 1 and all(r["seconds"] > 0 for r in records)
    where = dict.fromkeys(("cpu", "cpu_capability", "cores", "commit", "date", "torch"), "?")
    text = told.table_of([r | {"machine": where} for r in records], name)
    assert "24 x 20 x 16" in text and len(text.splitlines()) == 3
    assert f"| {name} | blocked |" in told.ranges(records)


@pytest.mark.parametrize("name", told.LOSSES)
def test_every_step_reads_its_input(name):
    measured, losses = told.LOSSES[name], {}
    for label, inputs in told.inputs_of(measured).items():
        batch = Batch.make(CASE, told.CPU)
        losses[label] = float(told.step_of(measured, batch, "blocked", inputs)())
        assert all(leaf.grad is not None for leaf in (batch.x, batch.y, batch.scale))
    assert losses.pop(told.AGAIN) == losses[told.BEFORE]
    assert len(set(losses.values())) == len(losses)


def test_offsets_get_gradients_in_the_step(monkeypatch):
    given, before = {}, told.told
    monkeypatch.setattr(told, "told", lambda *a: given.update(before(*a)) or given)
    step = told.step_of(told.LOSSES["InfoNCE"], Batch.make(CASE, told.CPU), "blocked", ("offsets",))
    seen = []
    for _ in range(2):
        step()
        seen.append([given[name].grad.clone() for name in ("image_offsets", "text_offsets")])
    assert all(g.abs().sum() > 0 for g in seen[0])
    assert all(map(torch.equal, *seen))  # the second step does not add to the first one's
