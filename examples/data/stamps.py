"""Stamps of Tux Paint: images with captions in many languages, some of them spoken.

The package tuxpaint-stamps-default (GPL-2) has an image NAME.png, its descriptions in NAME.txt,
and spoken ones in NAME_desc_LANG.ogg. A text file has the English description in its first line,
then a line `LANG.utf8=description` for each other language. Nothing of it comes with this project:
`make stamps` downloads and unpacks it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import OptionError

LEAST_COVERAGE = 0.9
SYMBOLS = "symbols"  # letters and digits: no photographs, and hardly described
VARIANTS = ("_mirror", "_flip")  # the same stamp once more


@dataclass(frozen=True)
class StampImage:
    """Image of a stamp on white, which is cut out with an alpha channel in its file."""

    path: Path
    mirrored: bool = False

    def open(self) -> Image.Image:
        """Decode the file, in RGB."""
        with Image.open(self.path) as image:
            cut_out = image.convert("RGBA")
        white = Image.new("RGBA", cut_out.size, "white")
        shown = Image.alpha_composite(white, cut_out).convert("RGB")
        return shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else shown


@dataclass(frozen=True)
class Stamp:
    """A stamp with its descriptions.

    Args:
        name: its path in the folder of stamps, without the ending.
        image: its file, PNG with an alpha channel.
        captions: its description by language.
        voices: the file of its spoken description by language, Ogg Vorbis.

    """

    name: str
    image: Path
    captions: dict[str, str]
    voices: dict[str, Path]

    @property
    def views(self) -> tuple[StampImage, StampImage]:
        """The image, and its mirror image."""
        return StampImage(self.image), StampImage(self.image, mirrored=True)


def load_stamps(folder: str) -> list[Stamp]:
    """The stamps of an unpacked package, by name.

    Args:
        folder: any folder above the stamps.

    Raises:
        OptionError: there are no stamps in it, or a text file is not UTF-8.

    """
    root = find_root(folder)
    paths = [
        path
        for path in sorted(root.rglob("*.png"))
        if path.relative_to(root).parts[0] != SYMBOLS
        and not path.stem.endswith(VARIANTS)
        and path.with_suffix(".txt").is_file()
    ]
    if not paths:
        raise OptionError(f"--data_root: {root} holds no NAME.png with NAME.txt; see `make stamps`")
    return [read_stamp(path, root) for path in paths]


def find_root(folder: str) -> Path:
    """The folder of the stamps: where the package has it, or the given one."""
    if not folder or not Path(folder).is_dir():
        raise OptionError(f"--data_root must name the folder of the stamps, not {folder!r}")
    here = Path(folder)
    found = [path for path in sorted(here.rglob("tuxpaint/stamps")) if path.is_dir()]
    return found[0] if found else here


def read_stamp(image: Path, root: Path) -> Stamp:
    """One stamp, from the path of its image."""
    try:
        text = image.with_suffix(".txt").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"--data_root: {image.with_suffix('.txt')} is not UTF-8") from error
    prefix = f"{image.stem}_desc_"
    voices = {
        path.stem.removeprefix(prefix): path for path in sorted(image.parent.glob(f"{prefix}*.ogg"))
    }
    name = image.relative_to(root).with_suffix("").as_posix()
    return Stamp(name, image, parse_captions(text), voices)


def parse_captions(text: str) -> dict[str, str]:
    """Descriptions by language, of the lines of a text file."""
    first, *others = text.split("\n")
    captions = {"en": first.strip()}
    for line in others:
        key, _, caption = line.partition("=")
        if key.endswith(".utf8") and caption.strip():
            captions[key.removesuffix(".utf8")] = caption.strip()
    return captions


def languages(stamps: Sequence[Stamp]) -> list[str]:
    """Languages that describe nine tenths of the stamps, without regional kinds of English."""
    counts = Counter(language for stamp in stamps for language in stamp.captions)
    least = LEAST_COVERAGE * len(stamps)
    return sorted(
        language
        for language, count in counts.items()
        if count >= least and not language.startswith("en_")
    )
