"""What the runs are given, made once for the stamps and kept in a file.

Images: features of a frozen EfficientNet-Lite0, their first principal components. Captions: the
hashes of their character n-grams, of all captions in one flat array.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import v2

from examples.data.stamps import Stamp
from examples.encoders.packaged import IMAGE_MEAN, IMAGE_STD, efficientnet_stages
from examples.files import is_kept, write_kept

PIXELS = 224
COMPONENTS = 256
BUCKETS = 1 << 14
LENGTHS = range(2, 6)  # of the n-grams
IMAGES_AT_ONCE = 16


@dataclass(frozen=True)
class StampSet:
    """Inputs of the runs: I stamps with two images each, and N captions.

    Caption n is of stamp ``stamps[n]`` in language ``spoken[n]``; the n-grams of its text are
    ``grams[offsets[n] : offsets[n + 1]]``.
    """

    images: Tensor  # (I, 2, components) float32: the image, and its mirror image
    grams: Tensor  # (G,) int64, below BUCKETS
    offsets: Tensor  # (N + 1,) int64
    stamps: Tensor  # (N,) int64
    spoken: Tensor  # (N,) int64, index of a language
    languages: tuple[str, ...]


def cached_features(stamps: Sequence[Stamp], languages: Sequence[str], path: Path) -> StampSet:
    """Read the features of these stamps from a file, or make them and write it."""
    captions = [(stamp.name, [stamp.captions.get(name) for name in languages]) for stamp in stamps]
    made_of = {
        "languages": json.dumps(list(languages)),
        "stamps": hashlib.sha256(json.dumps(captions).encode()).hexdigest(),
    }
    if not is_kept(path) or metadata(path) != made_of:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = encode(stamps, languages)
        tensors = {f.name: getattr(made, f.name) for f in fields(made) if f.name != "languages"}
        write_kept(path, lambda file: save_file(tensors, file, made_of))
    return read_features(path)


def read_features(path: Path) -> StampSet:
    """Features of a file that :func:`cached_features` wrote."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return StampSet(**tensors, languages=tuple(json.loads(metadata(path)["languages"])))


def metadata(path: Path) -> dict[str, str]:
    """What the file says about itself."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def encode(stamps: Sequence[Stamp], languages: Sequence[str]) -> StampSet:
    """Run the frozen encoder over the images, and cut the captions into n-grams."""
    bags, of_stamp, spoken = [], [], []
    for index, stamp in enumerate(stamps):
        for place, language in enumerate(languages):
            if language in stamp.captions:
                bags.append([bucket(gram) for gram in grams(stamp.captions[language])])
                of_stamp.append(index)
                spoken.append(place)
    sizes = torch.tensor([0, *map(len, bags)])
    return StampSet(
        encode_images(stamps),
        torch.tensor([place for bag in bags for place in bag]),
        sizes.cumsum(0),
        torch.tensor(of_stamp),
        torch.tensor(spoken),
        tuple(languages),
    )


def grams(text: str) -> Iterator[str]:
    """The n-grams of every word of a text, whose ends are marked."""
    for word in text.lower().split():
        marked = f"<{word}>"
        for length in LENGTHS:
            for start in range(len(marked) - length + 1):
                yield marked[start : start + length]


def bucket(gram: str) -> int:
    """Row of the table that an n-gram has."""
    return zlib.crc32(gram.encode()) % BUCKETS


@torch.no_grad()
def encode_images(stamps: Sequence[Stamp]) -> Tensor:
    """Principal components (I, 2, at most COMPONENTS) of the images' features."""
    stages, _ = efficientnet_stages(PIXELS)
    encoder = torch.nn.Sequential(*stages).eval()
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((PIXELS, PIXELS), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGE_MEAN, IMAGE_STD),
        ]
    )
    views = [view for stamp in stamps for view in stamp.views]
    features = torch.cat(
        [
            encoder(
                torch.stack([transform(view.open()) for view in views[at : at + IMAGES_AT_ONCE]])
            )
            for at in range(0, len(views), IMAGES_AT_ONCE)
        ]
    )
    return components(features).unflatten(0, (len(stamps), 2)).contiguous()


def components(features: Tensor) -> Tensor:
    """First principal components of features (M, D), scaled to norms of about 1."""
    centred = features - features.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    kept = centred @ axes[:COMPONENTS].T
    return kept / kept.norm(dim=1).mean()
