"""What mkdocs does not do by itself: figures, benchmark results and formulas.

* Every module of docs/figures has a function ``draw``; its figure becomes figures/NAME.svg.
* Every report of bench/results becomes a page under Performance, with its plots and its JSON; the
  plot of the scaling model is shown on the page about scaling.
* Every page and plot of an example's results is at found/EXAMPLE.
* ``$...$`` and ``$$...$$`` become MathML, which browsers show without a script, a font or a
  network; ``:func:`` and its kin become links.
"""

from __future__ import annotations

import html
import importlib
import io
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
# The pages of each study.
STUDIES = {"ablation": {"emoji.md", "furniture.md"}, "cma_clip": {"study.md", "rows.md"}}
sys.path.insert(0, str(ROOT))  # mkdocs imports this file by its path

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def reports() -> list[Path]:
    """The report of every machine that has results; other pages there have none."""
    return sorted(p for p in RESULTS.glob("*.md") if "\n## Machine\n" in p.read_text())


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the reports into the navigation, below Performance."""
    sections = config.nav or []
    (performance,) = (entry["Performance"] for entry in sections if "Performance" in entry)
    for report in reports():
        title = report.read_text().partition("\n")[0].removeprefix("# ")
        performance.append({title: f"results/{report.name}"})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures and the results."""
    for name in figures():
        made = File.generated(config, f"figures/{name}.svg", content=draw(name))
        committed = files.get_file_from_path(made.src_uri)
        if committed is not None:  # the README's; here it is drawn from the results of today
            files.remove(committed)
        files.append(made)
    for path in sorted(RESULTS.iterdir()):
        if path.suffix in {".md", ".svg", ".json"}:
            made = File.generated(config, f"results/{path.name}", abs_src_path=str(path))
            if path not in reports():
                made.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(made)
    for path, place in studies().items():
        made = File.generated(config, place, abs_src_path=str(path))
        made.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(made)
    for plot in sorted(RESULTS.glob("scaling_model/*.svg")):
        name = f"results/scaling_model/{plot.name}"
        files.append(File.generated(config, name, abs_src_path=str(plot)))
    return files


def studies() -> dict[Path, str]:
    """Pages and plots of the examples' results, and where they are in the site."""
    return {
        path: f"found/{example}/{path.name}"
        for example, pages in STUDIES.items()
        for path in sorted((ROOT / "examples" / "studies" / example / "results").iterdir())
        if path.suffix == ".svg" or path.name in pages
    }


def figures() -> list[str]:
    """The names of the figures."""
    folder = ROOT / "docs" / "figures"
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def draw(name: str) -> bytes:
    """A figure as SVG; the same code gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "mxm_kernels", "font.size": 9})
    from matplotlib import pyplot

    figure = importlib.import_module(f"docs.figures.{name}").draw()
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return target.getvalue()


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Every machine with its plots, in place of ``{plots}``."""
    if "{plots}" not in markdown:
        return markdown
    blocks = []
    for report in reports():
        title = report.read_text().partition("\n")[0].removeprefix("# ")
        (machine,) = re.findall(r"^## Machine\n\n(.*?)\n\n", report.read_text(), re.M | re.S)
        blocks += [f"### {title}", machine, f"[All of its tables](results/{report.name})"]
        for plot in sorted(RESULTS.glob(f"{report.stem}-*.svg")):
            name = plot.stem.removeprefix(f"{report.stem}-").replace("-", " ")
            blocks.append(f"![{name}, {title}](results/{plot.name})")
    return markdown.replace("{plots}", "\n\n".join(blocks))


def on_page_content(content: str, **_: object) -> str:
    """Formulas as MathML, and the cross-references of docstrings as links."""
    return references(formulas(content))


def formulas(content: str) -> str:
    """Replace what arithmatex marked."""

    def as_mathml(match: re.Match[str]) -> str:
        display = "block" if match[2] == "[" else "inline"
        return convert(html.unescape(match[3]).strip(), display=display)

    return _FORMULA.sub(as_mathml, content)


def references(content: str) -> str:
    """``:func:`name` `` becomes a link to the name where the page documents it."""
    places = re.findall(r'id="(mxm_kernels\.[\w.]+)"', content)

    def as_link(match: re.Match[str]) -> str:
        found = [place for place in places if place.endswith(f".{match[1]}")]
        code = f"<code>{match[1]}</code>"
        return f'<a href="#{found[0]}">{code}</a>' if found else code

    return re.sub(r":(?:func|class|meth):<code>([\w.]+)</code>", as_link, content)
