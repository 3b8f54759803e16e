"""The file of measured settings: it comes back as written, and what is not for here is ignored."""

import json
import os
import warnings
from dataclasses import replace

import pytest
import torch

tuned = pytest.importorskip("mxm_kernels.backends.triton.tuned")
from mxm_kernels.backends.triton import launch  # noqa: E402
from mxm_kernels.backends.triton.candidates import candidates  # noqa: E402
from mxm_kernels.backends.triton.settings import Cell, Launch  # noqa: E402
from mxm_kernels.folds import Folds  # noqa: E402
from mxm_kernels.ops.library import make_problem  # noqa: E402

H100, SHARED = "NVIDIA H100 80GB HBM3", 227 << 10
CELL = Cell("gradient", torch.bfloat16, True, 768, 16_384)
OTHER = candidates(CELL, "sm_90", SHARED)[3]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty one, and no settings from before."""
    monkeypatch.setenv(tuned.FOLDER, str(tmp_path))
    launch.in_force.cache_clear()
    yield tmp_path
    launch.in_force.cache_clear()


def entry(cell=CELL, found=OTHER, gpu=H100, **changes):
    return replace(tuned.Entry.here(gpu, cell, found, {}), **changes)


def test_what_is_written_is_read(folder):
    file = tuned.write([entry()])
    assert file == folder / "launch.json" == tuned.path()
    loaded = tuned.load(H100, "sm_90", SHARED)
    assert loaded.launches == {tuned.key(CELL): OTHER}
    assert loaded.elsewhere == 0 and loaded.ignored == () and len(loaded.digest) == 12
    assert [one.name for one in folder.iterdir()] == ["launch.json"]


def test_a_new_entry_takes_the_place_of_the_one_of_its_bucket():
    tuned.write([entry(), entry(gpu="another")])
    tuned.write([entry(found=CELL.shipped("sm_90"), measured={"milliseconds": 1.5})])
    entries, _ = tuned.read(tuned.path())
    assert len(entries) == 2
    assert tuned.load(H100, "sm_90", SHARED).launches == {tuned.key(CELL): CELL.shipped("sm_90")}
    assert {e.gpu for e in entries} == {H100, "another"}


@pytest.mark.parametrize("changes", [{"gpu": "another"}, {"triton": "0.1"}, {"source": "abc"}])
def test_entries_of_another_gpu_triton_or_source_are_not_in_force(changes):
    tuned.write([entry(**changes)])
    loaded = tuned.load(H100, "sm_90", SHARED)
    assert loaded.launches == {} and loaded.elsewhere == 1 and loaded.ignored == ()


@pytest.mark.parametrize(
    "found",
    [replace(OTHER, rows=96), replace(OTHER, group=3), replace(OTHER, stages=7)],
    ids=["tile", "group", "stages"],
)
def test_a_launch_that_is_no_candidate_is_ignored_with_its_name(found):
    other = replace(CELL, teacher=False)
    tuned.write([entry(found=found), entry(other, other.shipped("sm_90"))])
    loaded = tuned.load(H100, "sm_90", SHARED)
    assert loaded.launches == {tuned.key(other): other.shipped("sm_90")}
    (reason,) = loaded.ignored
    assert "1 of 2 entries are ignored" in reason and "gradient, bfloat16, teacher" in reason


def test_a_bucket_that_does_not_exist_is_ignored():
    tuned.write([entry(key=tuned.key(CELL)._replace(rows=17))])
    assert tuned.load(H100, "sm_90", SHARED).ignored


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 2, "entries": []}', '{"format": 1, "entries": [1]}',
     '{"format": 1, "entries": [{"gpu": "x"}]}', '{"format": 1}', "\xff"],
)  # fmt: skip
def test_a_file_of_something_else_is_named_and_never_overwritten(folder, text):
    tuned.path().write_bytes(text.encode("latin1"))
    with pytest.raises(
        tuned.TunedFileError, match="launch.json is not a file of measured settings"
    ):
        tuned.read(tuned.path())
    with pytest.raises(tuned.TunedFileError):
        tuned.write([entry()])
    assert tuned.path().read_bytes() == text.encode("latin1")
    loaded = tuned.load(H100, "sm_90", SHARED)
    assert loaded.launches == {} and loaded.digest is None
    assert "the table's launch settings are used" in loaded.ignored[0]


def test_a_file_that_cannot_be_read_is_named(folder):
    tuned.path().mkdir()
    with pytest.raises(tuned.TunedFileError, match="cannot be read"):
        tuned.read(tuned.path())


def test_a_write_that_fails_leaves_the_old_file(folder, monkeypatch):
    tuned.write([entry()])
    before = tuned.path().read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        tuned.write([entry(gpu="another")])
    assert tuned.path().read_bytes() == before
    assert [one.name for one in folder.iterdir()] == ["launch.json"]


def test_without_the_variable_the_file_is_beside_tritons_cache(monkeypatch, tmp_path):
    monkeypatch.delenv(tuned.FOLDER)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    assert tuned.path() == tmp_path / "mxm_kernels" / "launch.json"


@pytest.mark.parametrize(
    ("D", "rows", "bucket"),
    [(768, 16_384, (1024, 16_384)), (1024, 65_536, (1024, 16_384)), (1, 1, (256, 0)),
     (257, 1023, (512, 0)), (2048, 1024, (2048, 1024)), (2049, 16_383, (None, 4096))],
)  # fmt: skip
def test_buckets(D, rows, bucket):
    key = tuned.key(replace(CELL, D=D, rows=rows))
    assert (key.D, key.rows) == bucket
    assert "gradient, bfloat16, teacher" in tuned.describe(key)


def test_the_hash_is_that_of_the_kernels(monkeypatch, tmp_path):
    first = tuned.source_hash()
    for name, text in (("a.py", "@triton.jit\n"), ("b.py", "x = 1\n"), ("tuned.py", "")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(tuned, "__file__", str(tmp_path / "tuned.py"))
    tuned.source_hash.cache_clear()
    try:
        own = tuned.source_hash()
        (tmp_path / "b.py").write_text("x = 2\n")
        tuned.source_hash.cache_clear()
        assert tuned.source_hash() == own != first
        (tmp_path / "a.py").write_text("@triton.jit\n# another\n")
        tuned.source_hash.cache_clear()
        assert tuned.source_hash() != own
    finally:
        tuned.source_hash.cache_clear()


# What ``launch.pick`` makes of it, where the interpreter is the GPU.


def problem(rows=40, D=24, dtype=torch.float32):
    x, y = torch.randn(rows, D, dtype=dtype), torch.randn(rows, D, dtype=dtype)
    tables = Folds.uniform(1, 1).tables(rows, rows, CPU)
    return make_problem(x, y, None, torch.tensor(10.0), None, tables)


@pytest.fixture
def interpreted():
    if not launch.interpreted():
        pytest.skip("needs Triton's interpreter")


def measured(**changes):
    """A setting that is not the table's, for the batches of ``problem``."""
    cell = Cell.of("statistics", problem())
    wanted = candidates(cell, "interpreter", launch.shared_bytes(CPU))[1]
    return entry(cell, wanted, gpu="interpreter", **changes), wanted


def test_pick_takes_what_was_measured_and_nothing_of_another_bucket(interpreted):
    of, wanted = measured()
    tuned.write([of])
    assert launch.pick("statistics", problem()) == wanted
    shipped = Cell.of("gradient", problem()).shipped("interpreter")
    for other in (
        launch.pick("gradient", problem()),
        launch.pick("sigmoid_statistics", problem()),
        launch.pick("statistics", problem(), diagnostics=True),
        launch.pick("statistics", problem(D=300)),
        launch.pick("statistics", problem(dtype=torch.bfloat16)),
        launch.pick("statistics", problem(rows=1100)),
    ):
        assert other == shipped


def test_the_file_is_read_once(interpreted):
    of, wanted = measured()
    tuned.write([of])
    assert launch.pick("statistics", problem()) == wanted
    tuned.path().unlink()
    assert launch.pick("statistics", problem()) == wanted


def test_one_warning_names_what_is_ignored_and_the_table_holds(interpreted):
    tuned.path().write_text("nothing")
    with pytest.warns(UserWarning, match=r"launch.json is not a file.*tune --reset"):
        found = launch.pick("statistics", problem())
    assert found == Cell.of("statistics", problem()).shipped("interpreter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        launch.pick("statistics", problem())


def test_a_forced_launch_goes_before_all(interpreted):
    of, wanted = measured()
    tuned.write([of])
    forced = Launch(32, 16, 16, 1, 1)
    with launch.forced("statistics", forced):
        with launch.forced("statistics", wanted):
            assert launch.pick("statistics", problem()) == wanted
        assert launch.pick("statistics", problem()) == forced
    assert launch.pick("statistics", problem()) == wanted


def test_the_file_is_json_for_people_too(folder):
    tuned.write([entry(measured={"milliseconds": 2.5})])
    raw = json.loads(tuned.path().read_text())
    assert raw["entries"][0]["key"]["phase"] == "gradient"
    assert raw["entries"][0]["measured"] == {"milliseconds": 2.5}
