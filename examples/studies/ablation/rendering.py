"""Views of textured OBJ models, rendered off screen by VTK through PyVista, and kept in files."""

import json
import math
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from examples.files import is_kept, write_kept, write_whole

VIEWS = 6
PIXELS = 160
ELEVATION = math.radians(25)
FIRST_AZIMUTH = math.radians(20)  # the first view is from the front, a little from the side
FAILURES = "failures.json"


def view_of(strip: Path, number: int) -> Image.Image:
    """One of the views in a file that :func:`render_all` wrote."""
    return read_strip(strip).crop((PIXELS * number, 0, PIXELS * (number + 1), PIXELS))


@lru_cache(maxsize=1)  # all views of a model are asked for one after the other
def read_strip(path: Path) -> Image.Image:
    """The views of a model, beside each other."""
    with Image.open(path) as image:
        return image.convert("RGB")


def render_all(strips: dict[Path, Path], folder: Path, workers: int) -> dict[Path, str]:
    """Render models, each into a file of its own, and say of which nothing is to be seen.

    A file that is there is kept, so what was interrupted goes on from there. So are the failures,
    in a file of the folder: remove the folder to render everything anew.

    Args:
        strips: of each model the file that its views are to be in, below the folder.
        folder: made if it is not there.
        workers: processes; where one crashes, its model is among the failures.

    Returns:
        Why, of each model without a file.

    Raises:
        RuntimeError: PyVista is not installed.

    """
    require_pyvista()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / FAILURES
    failures = json.loads(record.read_text()) if is_kept(record) else {}
    names = {model: str(strip.relative_to(folder)) for model, strip in strips.items()}
    todo = [m for m, strip in strips.items() if not strip.exists() and names[m] not in failures]
    with tqdm(total=len(todo), desc="rendering", disable=not todo) as bar:
        while todo:
            found, lost = render_some({m: strips[m] for m in todo}, workers, bar)
            if workers == 1 and lost:  # alone in its process: it is to blame for the crash
                found[lost.pop(0)] = "the renderer crashed"
                bar.update()
            failures |= {names[model]: reason for model, reason in found.items()}
            write_kept(record, partial(write_json, failures))
            todo, workers = lost, 1
    return {m: failures[names[m]] for m in strips if names[m] in failures}


def render_some(
    strips: dict[Path, Path], workers: int, bar: tqdm
) -> tuple[dict[Path, str], list[Path]]:
    """Reasons of failures, and the models that a crash of a process left undone, in order."""
    failures: dict[Path, str] = {}
    lost: set[Path] = set()
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=hush) as pool:
        futures = {pool.submit(render_to, m, strip): m for m, strip in strips.items()}
        try:
            for future in as_completed(futures):
                model = futures[future]
                try:
                    reason = future.result()
                except BrokenProcessPool:
                    lost.add(model)
                    continue
                if reason:
                    failures[model] = reason
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return failures, [model for model in strips if model in lost]


def render_to(model: Path, strip: Path) -> str:
    """Render a model into a file, whole or not at all; why not, or nothing."""
    try:
        images = render(model)
    except ValueError as error:
        return str(error)
    row = Image.new("RGB", (PIXELS * len(images), PIXELS))
    for number, image in enumerate(images):
        row.paste(image, (PIXELS * number, 0))
    strip.parent.mkdir(parents=True, exist_ok=True)
    write_whole(strip, lambda path: row.save(path, "png"))
    return ""


def write_json(content: dict[str, str], path: Path) -> None:
    """Write a file that a person can read."""
    path.write_text(json.dumps(content, indent=1))


def require_pyvista() -> Any:
    """PyVista, or an error that says where it comes from."""
    try:
        import pyvista
    except ImportError as error:
        raise RuntimeError(
            "rendering needs PyVista: pip install 'mxm-kernels[furniture]'"
        ) from error
    return pyvista


def hush() -> None:
    """Keep VTK's remarks about materials that a model lacks, hundreds of them, off the screen."""
    from vtkmodules.vtkCommonCore import vtkLogger, vtkObject

    vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_OFF)
    vtkObject.GlobalWarningDisplayOff()


def render(model: Path) -> tuple[Image.Image, ...]:
    """Images of a model from around it, white behind it.

    Raises:
        RuntimeError: PyVista is not installed.
        ValueError: nothing is to be seen.

    """
    pyvista = require_pyvista()
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
            raise ValueError("renders as nothing: no face that VTK could read is to be seen")
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
