"""Files of the examples that are written whole, and read as they were written or not at all."""

import json
import re
import subprocess

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from examples.errors import CheckpointError
from examples.files import (
    digest_file,
    is_kept,
    read_json,
    require_kept,
    sealed,
    unsealed,
    write_json,
    write_kept,
    write_whole,
)
from tests.support.damage import flip, restored

CONTENT = {"step": 3, "losses": [1.5, 1e-05, float("inf")], "before": None, "name": "caf\u00e9"}


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "tokens.pt"
    write_kept(path, lambda file: torch.save({"a": torch.arange(9.0)}, file))
    return path


def test_every_bit_of_sealed_json_counts(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, CONTENT)
    assert read_json(path) == CONTENT
    good = path.read_bytes()
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            path.write_bytes(bad)
            with pytest.raises(CheckpointError, match=re.escape(f"{path} is not what was written")):
                read_json(path)
    for end in range(len(good)):
        assert unsealed(good[:end].decode()) is None


@pytest.mark.parametrize("text", ["", "3", "null", "[]", "{", "[" * 100_000, '{"sha256": 3}', "\0"])
def test_what_was_never_sealed_is_refused(text):
    assert unsealed(text) is None


def test_edited_values_need_another_digest():
    text = sealed(CONTENT)
    for value in ("-3", "1e9", "30000000000000", "null"):
        assert unsealed(text.replace('"step": 3', f'"step": {value}')) is None
    assert unsealed(text.replace('"step": 3', '"step":  3')) is None
    assert unsealed(json.dumps(CONTENT)) is None


@pytest.mark.parametrize("damaged", ["file", "digest"])
def test_a_changed_file_is_refused(kept, damaged):
    assert is_kept(kept)
    path = kept if damaged == "file" else digest_file(kept)
    for place in (0, 0.3, 0.5, 0.9, 1):
        with restored(path):
            flip(path, place)
            with pytest.raises(CheckpointError, match=r"tokens.pt is not what was .*; remove it"):
                is_kept(kept)
            with pytest.raises(CheckpointError, match=r"tokens.pt is not what was written there"):
                require_kept(kept)
    assert is_kept(kept)
    with restored(path):
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=r"tokens.pt is not what was written there"):
            is_kept(kept)


def test_a_file_without_its_digest_was_not_finished(kept):
    digest_file(kept).unlink()
    assert not is_kept(kept)
    with pytest.raises(CheckpointError, match=r"is missing, or has no SHA-256 in tokens.pt.sha256"):
        require_kept(kept)
    kept.unlink()
    assert not is_kept(kept)


def test_a_second_writing_that_fails_leaves_no_file_that_counts(kept):
    def fail(path):
        path.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(CheckpointError, match=r"cannot write .*tokens.pt: No space left"):
        write_kept(kept, fail)
    assert not is_kept(kept)
    assert [p.name for p in kept.parent.iterdir()] == ["tokens.pt"]  # the old one


def test_the_digest_is_as_sha256sum_reads_it(kept):
    command = ["sha256sum", "--check", digest_file(kept).name]
    done = subprocess.run(command, cwd=kept.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "tokens.pt: OK\n"


@pytest.mark.parametrize("error", [OSError("full"), RuntimeError("full"), SafetensorError("full")])
def test_what_cannot_be_written_is_named(tmp_path, error):
    def fail(path):
        raise error

    with pytest.raises(CheckpointError, match=r"cannot write .*model.safetensors: full"):
        write_whole(tmp_path / "model.safetensors", fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*nowhere/a: "):
        write_whole(tmp_path / "nowhere" / "a", lambda p: save_file({"a": torch.ones(1)}, p))
    assert not list(tmp_path.iterdir())
