"""Views of a textured OBJ model, rendered off screen by VTK through PyVista."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

VIEWS = 6
PIXELS = 160
ELEVATION = math.radians(25)
FIRST_AZIMUTH = math.radians(20)  # the first view is from the front, a little from the side


@lru_cache(maxsize=1)  # all views of a model are asked for one after the other
def render(model: Path) -> tuple[Image.Image, ...]:
    """Images of a model from around it, white behind it.

    Raises:
        RuntimeError: PyVista is not installed.
        ValueError: nothing is to be seen.

    """
    try:
        import pyvista
    except ImportError as error:
        raise RuntimeError(
            "rendering needs PyVista: pip install 'mxm-kernels[furniture]'"
        ) from error
    plotter: Any = pyvista.Plotter(off_screen=True, window_size=[PIXELS, PIXELS])
    try:
        plotter.set_background("white")
        materials = model.with_suffix(".mtl")
        plotter.import_obj(str(model), str(materials) if materials.exists() else None)
        for actor in plotter.renderer.actors.values():
            light_evenly(actor)
        images = []
        for view in range(VIEWS):
            azimuth = FIRST_AZIMUTH + 2 * math.pi * view / VIEWS
            direction = (math.sin(azimuth), math.tan(ELEVATION), math.cos(azimuth))
            plotter.view_vector(direction, viewup=(0, 1, 0))
            images.append(Image.fromarray(plotter.screenshot(return_img=True)).convert("RGB"))
        if all(image.getextrema() == ((255, 255),) * 3 for image in images):
            raise ValueError(f"{model} renders as nothing: VTK could not read it")
        return tuple(images)
    finally:
        plotter.close()


def light_evenly(actor: Any) -> None:
    """Give every material the same ambient and specular light.

    Exporters disagree about both: ambient colours of 1 would make a model white all over. A
    texture is shown in its own colours, not multiplied by the material's.
    """
    surface = actor.GetProperty()
    coordinates = actor.GetMapper().GetInput().GetPointData().GetTCoords()
    if actor.GetTexture() is not None and coordinates is not None:
        surface.SetDiffuseColor(1, 1, 1)
    surface.SetAmbientColor(surface.GetDiffuseColor())
    surface.SetAmbient(0.35)
    surface.SetDiffuse(0.65)
    surface.SetSpecular(0.1)
