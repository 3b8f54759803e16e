"""The rendered models, on a collection of two boxes that the test writes."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyvista", reason="the furniture extra is not installed")
pytest.importorskip("javaproperties", reason="the furniture extra is not installed")

from examples.options import OptionError
from examples.studies.ablation import furniture, rendering
from examples.studies.ablation.furniture import find_models, load_furniture, looks, nearest_colour
from examples.studies.ablation.rendering import FAILURES, VIEWS, render

# A box whose front (towards +z) is red wood; the other sides are blue metal, a colour of
# ambient 1 as some exporters write it. The last face has two corners, a property comes before the
# first material, and textures are named as found in the package.
BOX = """mtllib {name}.mtl
v -1 0 -1
v 1 0 -1
v 1 3 -1
v -1 3 -1
v -1 0 1
v 1 0 1
v 1 3 1
v -1 3 1
vt 0 0
vt 1 1
usemtl front_wood
f 5/1 6/1 7/2 8/2
f 5/1 6/1 7/2
f 5/1 7/2 8/2
usemtl blue_metal
f 1/1 4/1 3/1 2/1
f 2/1 3/1 7/1 6/1
f 1/1 5/1 8/1 4/1
f 4/1 8/1 7/1 3/1
f 1 2
"""
MATERIALS = """# Blender MTL File
Ns 20
newmtl front_wood
Ka 1 1 1
Kd 0 0 0
map_Kd C:\\Documents and Settings\\red.png\t
newmtl blue_metal
Ka 1 1 1
Kd 0.1 0.2 0.8
map_Kd missing.jpg
"""
RED = io.BytesIO()
Image.new("RGB", (4, 4), (200, 30, 30)).save(RED, "png")
CATALOG = """# two boxes
name=Test catalog
id#1=a
name#1=B\\u00fcro Box
tags#1=Storage, Test catalog
category#1=Office
model#1=/boxes/one/one.obj
width#1=20.4
depth#1=20
height#1=30
id#2=b
name#2=Box
tags#2=
category#2=Box
model#2=/boxes/two/two.obj
width#2=1
depth#2=2
height#2=3
id#3=c
name#3=Not there
model#3=/boxes/three/three.obj
"""


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "usr" / "share"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "Boxes.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", CATALOG)
        for name in ("one", "two"):
            archive.writestr(f"boxes/{name}/{name}.obj", BOX.format(name=name))
            archive.writestr(f"boxes/{name}/{name}.mtl", MATERIALS)
            archive.writestr(f"boxes/{name}/red.png", RED.getvalue())
    return tmp_path


def test_captions_are_name_category_size_tags_and_looks(package):
    (first, second), left_out = load_furniture(str(package))
    assert left_out == {}
    assert first.captions == (
        "b\u00fcro box",
        "b\u00fcro box, office",
        "b\u00fcro box, 20 by 20 by 30 cm",
        "b\u00fcro box, storage",
        "blue and red b\u00fcro box of metal and wood",
    )
    assert "box, 1 by 2 by 3 cm" in second.captions
    assert len(second.captions) == 4
    assert load_furniture(str(package)) == ([first, second], {})
    assert load_furniture(str(package), limit=1) == ([first], {})


def test_views_differ_and_show_the_materials_colours(package):
    (first, _), _ = load_furniture(str(package))
    views = [np.asarray(view.open(), dtype=float) for view in first.images]
    assert len(views) == VIEWS
    front, back = views[0], views[VIEWS // 2]

    def seen(image):
        return image[(image < 250).any(-1)].mean(0)

    assert seen(front)[0] > 2 * seen(front)[1]
    assert seen(front)[0] > seen(back)[0] + 50
    assert seen(back)[2] > 2 * seen(back)[0]
    assert all((view[0, 0] == 255).all() for view in views)


def paths(package):
    return [model for model, _ in find_models(str(package))]


def test_a_model_of_which_nothing_is_seen_is_left_out_by_name(package, monkeypatch):
    first, second = paths(package)
    first.write_text("v 0 0 0\n")
    with pytest.raises(ValueError, match="renders as nothing"):
        render(first)
    with pytest.raises(
        OptionError, match=r"1 of 2 models could not be .*one\.obj: renders as noth"
    ):
        load_furniture(str(package))
    monkeypatch.setattr(furniture, "MOST_LEFT_OUT", 0.5)
    monkeypatch.setattr(rendering, "render_some", None)  # both are in the files of before
    (instance,), left_out = load_furniture(str(package))
    assert instance.name == str(second)
    assert list(left_out) == [str(first)]
    assert "renders as nothing" in left_out[str(first)]


def render_or_crash(model, strip):
    if "one" in model.name:
        os._exit(1)
    return rendering_to(model, strip)


rendering_to = rendering.render_to


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_costs_its_model_and_no_other(package, monkeypatch, workers):
    models, views = paths(package), package / "views"
    strips = {model: views / f"{model.stem}.png" for model in models}
    monkeypatch.setattr(rendering, "render_to", render_or_crash)
    failures = rendering.render_all(strips, views, workers)
    assert failures == {models[0]: "the renderer crashed"}
    assert [strips[model].exists() for model in models] == [False, True]
    assert json.loads((views / FAILURES).read_text()) == {"one.png": "the renderer crashed"}


def test_rendering_goes_on_where_it_was_interrupted(package, monkeypatch):
    models, views = paths(package), package / "views"
    strips = {model: views / f"{model.stem}.png" for model in models}
    rendering.render_all({models[0]: strips[models[0]]}, views, 1)
    rendered = []
    original = rendering.render_some
    monkeypatch.setattr(
        rendering, "render_some", lambda todo, *rest: rendered.extend(todo) or original(todo, *rest)
    )
    assert rendering.render_all(strips, views, 1) == {}
    assert rendered == models[1:]
    assert all(strip.exists() for strip in strips.values())


def test_colours_and_materials_are_named(package):
    assert looks(paths(package)[0]) == (["blue", "red"], ["metal", "wood"])
    assert nearest_colour(np.array([250.0, 250, 240])) == "white"


def test_a_folder_without_collections_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"--data_root: .* holds no \*.sh3f; .*`make furniture`"):
        load_furniture(str(tmp_path))
    with pytest.raises(OptionError, match="--data_root: nothing holds"):
        load_furniture("")
