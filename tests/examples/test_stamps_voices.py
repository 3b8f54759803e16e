"""Image, text and voice: on made-up noise, and on files where the stamps extra is installed."""

import numpy as np
import pytest
import torch

pytest.importorskip("efficientnet_lite_pytorch", reason="the examples extra is not installed")

from examples.data.stamps import Stamp
from examples.errors import OptionError
from examples.studies.protocol.runs import Point, Run
from examples.studies.stamps import voices_study as study
from examples.studies.stamps.features import StampSet
from examples.studies.stamps.voices import (
    LOSSES,
    Voices,
    VoiceSetting,
    evaluate,
    one_each,
    scores,
    train,
)

BANDS, FRAMES, STAMPS = 8, 40, 12


@pytest.fixture(scope="module")
def data():
    """Stamps with a caption in two languages each, of an n-gram of their own."""
    ids = torch.arange(STAMPS).repeat_interleave(2)
    return StampSet(
        torch.eye(STAMPS)[:, None].expand(STAMPS, 2, STAMPS).contiguous(),
        ids + 3,
        torch.arange(2 * STAMPS + 1),
        ids,
        torch.tensor([0, 1]).repeat(STAMPS),
        ("ro", "ca"),
    )


@pytest.fixture(scope="module")
def voices(data):
    """A voice for every caption: its stamp's noise."""
    noise = torch.randn(STAMPS, BANDS, FRAMES, generator=torch.Generator().manual_seed(0))
    return Voices(noise[data.stamps].half(), torch.arange(2 * STAMPS))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_the_tuples(data, voices, loss):
    def recall(steps):
        run = Run(VoiceSetting(loss, 5, 6, steps), Point(0.03, 0.1), 0, 0, "test")
        rows = torch.arange(2 * STAMPS)
        model, seconds = train(run.setting, data, voices, rows, run)
        assert seconds > 0
        return evaluate(run.setting, model, data, voices, rows)["R@1"]

    assert recall(60) > max(recall(1), 60)


def test_a_batch_has_one_voice_of_each_stamp():
    rows, stamps = torch.tensor([7, 3, 5, 9, 4]), torch.tensor([2, 0, 2, 1, 0])
    assert one_each(rows, stamps).tolist() == [7, 3, 9]


def test_scores_add_similarities_or_multiply_features():
    images, texts, voices = (torch.randn(n, 4) for n in (3, 2, 2))
    added = texts @ images.T + voices @ images.T
    torch.testing.assert_close(scores("pairwise", images, texts, voices), added)
    torch.testing.assert_close(scores("text alone", images, texts, voices), texts @ images.T)
    product = torch.einsum("nd,nd,md->nm", texts, voices, images)
    torch.testing.assert_close(scores("symile", images, texts, voices), product)


def test_stamps_are_in_one_part_only():
    validation, tests = study.deal(53, 5)
    assert len(validation) == 5
    assert sorted(torch.cat([validation, *tests]).tolist()) == list(range(53))


def test_nothing_that_is_measured_is_trained_on(data, voices, monkeypatch):
    monkeypatch.setattr(study, "_worker", (data, voices), raising=False)
    seen = {}

    def note(setting, data, voices, rows, run):
        seen["trained"] = set(data.stamps[voices.captions[rows]].tolist())
        return None, 1.0

    def measure(setting, model, data, voices, rows):
        seen["measured"] = set(data.stamps[voices.captions[rows]].tolist())
        return {}

    monkeypatch.setattr(study, "train", note)
    monkeypatch.setattr(study, "evaluate", measure)
    parts = []
    for on in ("test", "validation"):
        study.execute(Run(VoiceSetting("symile", 3), Point(0.1, 0.1), 1, 0, on))
        assert seen["measured"]
        assert not seen["measured"] & seen["trained"]
        parts.append(seen["measured"])
    assert not parts[0] & parts[1]


def test_the_page_has_a_row_for_each_loss_and_the_named_contrast_first():
    names = ("average recall", "R@1", "R@5", "R@10")
    results = [
        {
            "loss": loss,
            "steps": 3,
            "stamps": 4,
            "chosen": {"lr": 0.1, "temperature": 0.2},
            "metrics": {name: [[base + split] * 2 for split in range(5)] for name in names},
            "seconds": 1.0,
        }
        for base, loss in enumerate(LOSSES)
    ]
    page = study.voice_tables({"stamps": 9, "voices": 20, "results": results})
    contrasts = [line for line in page.split("\n") if " against " in line and "|" in line]
    assert contrasts[0].startswith("| Symile: image, text and voice against Pairwise InfoNCE")
    assert "+1.0" in contrasts[0]
    assert all(f"| {title} |" in page for title in study.TITLES.values())


def test_voices_are_read_from_files_and_kept(data, tmp_path, monkeypatch):
    soundfile = pytest.importorskip("soundfile", reason="the stamps extra is not installed")
    pytest.importorskip("torchaudio", reason="the stamps extra is not installed")
    from examples.studies.stamps import sound

    tone = np.sin(np.arange(22050) * 2 * np.pi * 440 / 22050)
    file = tmp_path / "cow_desc_ro.ogg"
    soundfile.write(file, np.stack([tone, tone], 1), 22050)
    stamp = Stamp("cow", tmp_path / "cow.png", {"ro": "O vac\u0103."}, {"ro": file})
    kept = tmp_path / "voices.safetensors"
    made = study.cached_voices([stamp] * STAMPS, data, kept)
    assert made.captions.tolist() == list(range(0, 2 * STAMPS, 2))
    assert made.sounds.shape == (STAMPS, sound.BANDS, sound.FRAMES)
    assert (made.sounds[0, :, 60:] == 0).all()  # a second has 50 frames
    assert 7 <= int(made.sounds[0, :, 20].argmax()) <= 14  # 440 Hz of 4000
    monkeypatch.setattr(sound, "spectrograms", lambda _: pytest.fail("decoded again"))
    again = study.cached_voices([stamp] * STAMPS, data, kept)
    assert torch.equal(again.sounds, made.sounds)


def test_a_broken_voice_is_named(tmp_path):
    pytest.importorskip("soundfile", reason="the stamps extra is not installed")
    pytest.importorskip("torchaudio", reason="the stamps extra is not installed")
    from examples.studies.stamps.sound import read

    broken = tmp_path / "cow_desc_ro.ogg"
    broken.write_bytes(b"no sound")
    with pytest.raises(OptionError, match=r"--data_root: .*cow_desc_ro\.ogg cannot be decoded"):
        read(broken)
