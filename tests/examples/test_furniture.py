"""The rendered models, on a collection of two boxes that the test writes."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyvista", reason="the furniture extra is not installed")
pytest.importorskip("javaproperties", reason="the furniture extra is not installed")

from examples.ablation.furniture import load_furniture, looks, nearest_colour
from examples.ablation.rendering import VIEWS, render
from examples.finetune.config import OptionError

# A box whose front (towards +z) is red wood; the other sides are blue metal, a colour of
# ambient 1 as some exporters write it. The last face has two corners, and textures are named as
# found in the package.
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
MATERIALS = """newmtl front_wood
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
    first, second = load_furniture(str(package))
    assert first.captions == (
        "b\u00fcro box",
        "b\u00fcro box, office",
        "b\u00fcro box, 20 by 20 by 30 cm",
        "b\u00fcro box, storage",
        "blue and red b\u00fcro box of metal and wood",
    )
    assert "box, 1 by 2 by 3 cm" in second.captions
    assert len(second.captions) == 4
    assert load_furniture(str(package)) == [first, second]


def test_views_differ_and_show_the_materials_colours(package):
    first, _ = load_furniture(str(package))
    views = [np.asarray(view.open(), dtype=float) for view in first.images]
    assert len(views) == VIEWS
    front, back = views[0], views[VIEWS // 2]

    def seen(image):
        return image[(image < 250).any(-1)].mean(0)

    assert seen(front)[0] > 2 * seen(front)[1]
    assert seen(front)[0] > seen(back)[0] + 50
    assert seen(back)[2] > 2 * seen(back)[0]
    assert all((view[0, 0] == 255).all() for view in views)


def test_what_cannot_be_seen_is_an_error(package):
    first, _ = load_furniture(str(package))
    model = first.images[0].model
    model.with_name("empty.obj").write_text("v 0 0 0\n")
    with pytest.raises(ValueError, match=r"empty.obj renders as nothing"):
        render(model.with_name("empty.obj"))


def test_colours_and_materials_are_named(package):
    first, _ = load_furniture(str(package))
    assert looks(first.images[0].model) == (["blue", "red"], ["metal", "wood"])
    assert nearest_colour(np.array([250.0, 250, 240])) == "white"


def test_a_folder_without_collections_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"--data_root: .* holds no \*.sh3f; .*`make furniture`"):
        load_furniture(str(tmp_path))
    with pytest.raises(OptionError, match="--data_root: nothing holds"):
        load_furniture("")
