"""Spoken descriptions as mel spectrograms."""

from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
import torchaudio
from torch import Tensor
from torch.nn.functional import pad

from examples.errors import OptionError

RATE = 8000  # samples a second, to which all are brought
HOP = 160  # samples between two frames: 20 ms
BANDS = 40
FRAMES = 150  # three seconds; most descriptions take one


def spectrograms(paths: Sequence[Path]) -> Tensor:
    """Logarithm of the mel spectrogram of each file: (files, BANDS, FRAMES) float16.

    Raises:
        OptionError: a file cannot be decoded.

    """
    mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=256, hop_length=HOP, n_mels=BANDS)
    return torch.stack([spectrogram(read(path), mel) for path in paths])


def read(path: Path) -> Tensor:
    """Samples of a file, of its channels' mean, at RATE."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise OptionError(f"--data_root: {path} cannot be decoded: {error}") from error
    return torchaudio.functional.resample(torch.from_numpy(samples).mean(1), rate, RATE)


def spectrogram(samples: Tensor, mel: torchaudio.transforms.MelSpectrogram) -> Tensor:
    """One spectrogram, with a mean of 0 and a deviation of 1 before silence fills the rest."""
    shown = (mel(samples) + 1e-6).log()[:, :FRAMES]
    shown = (shown - shown.mean()) / (shown.std() + 1e-6)
    return pad(shown, (0, FRAMES - shown.shape[1])).half()
