"""Furniture in 3D with captions, after Text2Shape: a harder set than the emoji.

The models are those of Debian's package sweethome3d-furniture (120 MB): 820 textured OBJ models in
five collections, licences CC-BY 3.0 (Kator Legaz, Reallusion, Scopia, Blend Swap) and CC0 (Blend
Swap). `make furniture` downloads and unpacks it; no model and no image is stored with this code.

An instance is a model. Its images: six views. Its captions: name, name with category, tags, size,
and colours with materials. Many models share a name, and some a caption. Models of which nothing
is to be seen are left out, by name.
"""

import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import javaproperties
import numpy as np
from PIL import Image

from examples.data.instances import Instance
from examples.options import OptionError

from .rendering import VIEWS, render_all, view_of

CATALOG = "PluginFurnitureCatalog.properties"
COLOURS = {
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "white": (255, 255, 255),
    "red": (200, 30, 30),
    "orange": (235, 130, 30),
    "yellow": (235, 215, 60),
    "green": (50, 140, 50),
    "blue": (40, 70, 190),
    "purple": (120, 50, 150),
    "pink": (240, 150, 180),
    "brown": (120, 75, 40),
    "beige": (215, 195, 160),
}
# Words in the names of materials, some of them Spanish or Catalan.
MATERIALS = {
    "wood": ("wood", "madera", "fusta", "oak", "pine"),
    "metal": ("metal", "chrome", "steel", "alumin", "iron", "brass"),
    "glass": ("glass", "cristal", "mirror"),
    "plastic": ("plastic",),
    "fabric": ("fabric", "cloth", "textile"),
    "leather": ("leather",),
    "ceramic": ("ceramic", "porcelain"),
    "rubber": ("rubber",),
    "stone": ("stone", "marble", "granite"),
}
LEAST_SHARE = 0.2  # of a model's faces, from which a colour is named
MOST_LEFT_OUT = 0.05  # of the models; with more the renderer, not a model, is broken


@dataclass(frozen=True)
class View:
    """One of the views of a model."""

    strip: Path  # the file of all of them
    number: int

    def open(self) -> Image.Image:
        """Decode the view."""
        return view_of(self.strip, self.number)


def load_furniture(
    root: str, limit: int = 0, workers: int = 1
) -> tuple[list[Instance], dict[str, str]]:
    """Instances of the package unpacked under `root` by `dpkg -x`, their models rendered.

    Args:
        root: folder; the models are unpacked and the views kept in it.
        limit: look at this many models only; 0: at all.
        workers: processes that render.

    Returns:
        The instances, and of the models that are left out the reason.

    Raises:
        OptionError: there are no collections (`*.sh3f`) under `root`, or too many models cannot
            be rendered.

    """
    models, views = Path(root) / "models", Path(root) / "views"
    found = list(islice(find_models(root), limit or None))
    strips = {m: views / m.relative_to(models).with_suffix(".png") for m, _ in found}
    failures = render_all(strips, views, workers)
    if len(failures) > MOST_LEFT_OUT * len(found):
        model, reason = next(iter(failures.items()))
        raise OptionError(
            f"--data furniture: {len(failures)} of {len(found)} models could not be rendered, the "
            f"first is {model}: {reason}. So many mean that VTK cannot draw on this machine: see "
            f"that `python -c 'import pyvista; print(pyvista.Report())'` works, remove {views} and "
            "start again"
        )
    instances = [
        Instance(str(model), tuple(View(strips[model], k) for k in range(VIEWS)), texts)
        for model, texts in found
        if model not in failures
    ]
    return instances, {str(model): reason for model, reason in failures.items()}


def find_models(root: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The models of all collections under `root`, and their captions."""
    collections = sorted(Path(root).rglob("*.sh3f"))
    if not root or not collections:
        raise OptionError(
            f"--data_root: {root or 'nothing'} holds no *.sh3f; unpack the Debian package "
            "sweethome3d-furniture there, as `make furniture` does"
        )
    for collection in collections:
        yield from load_collection(collection, Path(root) / "models" / collection.stem)


def load_collection(archive: Path, folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Models and captions of one collection, whose files are unpacked into a folder."""
    if not folder.exists():
        unpack(archive, folder)
    with (folder / CATALOG).open("rb") as file:
        catalog = javaproperties.load(file)
    provider = {part.strip() for part in catalog.get("name", "").split(",")} | {"Blend Swap"}
    for number in range(1, 1 + sum(key.startswith("id#") for key in catalog)):
        fields = {
            name: catalog.get(f"{name}#{number}", "")
            for name in ("name", "tags", "category", "model", "width", "depth", "height")
        }
        model = folder / fields["model"].lstrip("/")
        if model.suffix == ".obj" and model.exists():
            tags = [tag.strip() for tag in fields["tags"].split(",")]
            tags = [tag for tag in tags if tag and tag not in provider]
            yield model, captions(fields, tags, *looks(model))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a collection, whole or not at all, and mend what VTK does not read.

    It reads nothing of a model that has a face of two corners, crashes on a property before the
    first material, finds no texture behind trailing blanks or a path of its author's computer, and
    shows a missing one as white.
    """
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(archive) as files:
        files.extractall(partial)
    for model in partial.rglob("*.obj"):
        lines = model.read_text(encoding="latin-1").splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith("f ") or len(line.split()) > 3]
        if len(kept) < len(lines):
            model.write_text("".join(kept), encoding="latin-1")
    for materials in partial.rglob("*.mtl"):
        lines = [line.rstrip() for line in materials.read_text(encoding="latin-1").splitlines()]
        first = (n for n, line in enumerate(lines) if line.lstrip().startswith("newmtl"))
        mended = [texture_beside(line, materials.parent) for line in lines[next(first, 0) :]]
        materials.write_text("\n".join(mended) + "\n", encoding="latin-1")
    partial.rename(folder)


def texture_beside(line: str, folder: Path) -> str:
    """A line of a material file; of a texture's path the name, and nothing if it is not there."""
    keyword, _, path = line.strip().partition(" ")
    if keyword != "map_Kd":
        return line
    name = path.replace("\\", "/").rpartition("/")[2]
    return f"map_Kd {name}" if (folder / name).is_file() else ""


def captions(
    fields: dict[str, str], tags: list[str], colours: list[str], materials: list[str]
) -> tuple[str, ...]:
    """Distinct captions of a model."""
    name = fields["name"].lower()
    size = " by ".join(f"{float(fields[side]):.0f}" for side in ("width", "depth", "height"))
    made = [name, f"{name}, {fields['category'].lower()}", f"{name}, {size} cm"]
    if tags:
        made.append(f"{name}, {', '.join(tags).lower()}")
    if colours or materials:
        made_of = f" of {' and '.join(materials)}" if materials else ""
        made.append(f"{' and '.join(colours)} {name}{made_of}".strip())
    return tuple(dict.fromkeys(made))


def looks(model: Path) -> tuple[list[str], list[str]]:
    """Names of the colours and of the materials that make up much of a model."""
    faces, material = Counter[str](), ""
    for line in model.read_text(encoding="latin-1").splitlines():
        if line.startswith("usemtl"):
            material = line[7:].strip()
        elif line.startswith("f "):
            faces[material] += 1
    shades = read_colours(model.with_suffix(".mtl"))
    colours, made_of = Counter[str](), Counter[str]()
    for name, count in faces.items():
        if name in shades:
            colours[nearest_colour(shades[name])] += count
        for kind, words in MATERIALS.items():
            if any(word in name.lower() for word in words):
                made_of[kind] += count
    return common(colours, faces.total()), common(made_of, faces.total())


def common(counts: Counter[str], total: int) -> list[str]:
    """The names with at least a fifth of the faces, at most two."""
    return [name for name, count in counts.most_common(2) if count >= LEAST_SHARE * total]


def read_colours(path: Path) -> dict[str, np.ndarray]:
    """Colour (3,) from 0 to 255 of every material of a file; of a texture its mean."""
    colours: dict[str, np.ndarray] = {}
    if not path.exists():
        return colours
    material = ""
    for line in path.read_text(encoding="latin-1").splitlines():
        keyword, _, value = line.strip().partition(" ")
        if keyword == "newmtl":
            material = value.strip()
        elif keyword == "Kd":
            colours.setdefault(material, 255 * np.array([float(v) for v in value.split()[:3]]))
        elif keyword == "map_Kd" and (path.parent / value.strip()).exists():
            with Image.open(path.parent / value.strip()) as texture:
                colours[material] = np.asarray(texture.convert("RGB").resize((1, 1)), float)[0, 0]
    return colours


def nearest_colour(colour: np.ndarray) -> str:
    """Name of the nearest of a few colours."""
    return min(COLOURS, key=lambda name: float(np.square(colour - COLOURS[name]).sum()))
