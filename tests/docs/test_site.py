"""The site: it builds without a warning, its formulas and figures are there, it is all local."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the docs extra is not installed")
pytest.importorskip("latex2mathml", reason="the docs extra is not installed")

from mkdocs.config import load_config

from docs import site_hooks
from tests.support.surface import MODULES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def page(site, name):
    """The HTML of a page: the index of a folder is the folder's own."""
    folder = name.removesuffix("index")
    return (site / folder / "index.html").read_text()


def place(path):
    """A page's path in the docs: hosts/open_clip."""
    return path.relative_to(DOCS).with_suffix("").as_posix()


def test_every_page_is_there_with_its_formulas(site):
    for path in PAGES:
        html = page(site, place(path))
        assert html.count("<math") >= path.read_text().count("\n$$\n") // 2
        assert "arithmatex" not in html


def test_no_formula_has_an_unknown_command(site):
    """latex2mathml prints a command or a column separator that it does not know as it is."""
    for path in PAGES:
        for formula in re.findall(r"<math.*?</math>", page(site, place(path)), re.DOTALL):
            assert "\\" not in formula
            assert "&amp;" not in formula
            assert "<mi>&</mi>" not in formula


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', path.read_text()
        )
        assert loaded == []


@pytest.mark.parametrize("address", ["", "https://docs.example.org/mxm/"])
def test_the_address_is_the_environment_s(monkeypatch, address):
    """Of the build alone; without one the site names no address."""
    monkeypatch.setenv("SITE_URL", address)
    assert load_config(str(ROOT / "mkdocs.yml")).site_url == (address or None)


def test_the_home_page_shows_the_picture_of_the_readme(site):
    html = page(site, "index")
    assert 'src="figures/time_and_memory.svg"' in html
    assert "canonical" not in html
    drawn = (site / "figures" / "time_and_memory.svg").read_bytes()
    assert drawn == site_hooks.draw("time_and_memory")


def test_every_figure_is_drawn_and_shown(site):
    assert site_hooks.figures()
    everything = "".join(path.read_text() for path in PAGES)
    for name in site_hooks.figures():
        assert f"(figures/{name}.svg)" in everything
        assert "<svg" in (site / "figures" / f"{name}.svg").read_text()


def test_a_figure_is_the_same_every_time():
    assert site_hooks.draw("group_matrix") == site_hooks.draw("group_matrix")


def test_every_plot_stands_on_its_page_and_on_the_summary(site):
    plots = sorted((ROOT / "bench" / "results").glob("*.svg"))
    assert plots
    summary = page(site, "performance")
    reports = "".join(page(site, f"results/{path.stem}") for path in site_hooks.reports())
    for plot in plots:
        assert plot.name in summary
        assert plot.name in reports


def test_every_plot_of_the_examples_is_shown(site):
    shown = page(site, "found")
    plots = [place for place in site_hooks.studies().values() if place.endswith(".svg")]
    assert plots
    for place in plots:
        assert f'src="{place.removeprefix("found/")}"' in shown
        assert (site / place).is_file()


def test_the_scaling_model_is_shown_and_named_a_model(site):
    html = page(site, "scaling")
    assert "results/scaling_model/weak_scaling.svg" in html
    assert (site / "results" / "scaling_model" / "weak_scaling.svg").exists()
    assert "A model, not a measurement over several devices" in html


def test_the_reference_has_every_public_name(site):
    html = page(site, "api")
    for module in MODULES:
        for name in module.__all__:
            assert f'id="{module.__name__}.{name}"' in html
    assert not re.findall(r":(func|class|meth):", html)


def test_formulas_become_mathml():
    marked = '<span class="arithmatex">\\(a &lt; b\\)</span><div class="arithmatex">\\[x\\]</div>'
    made = site_hooks.formulas(marked)
    assert made.count("<math") == 2
    assert 'display="block"' in made
    assert "&#x0003C;" in made


def test_cross_references_become_links_where_they_lead_somewhere():
    content = '<h3 id="mxm_kernels.Folds.to"></h3> :meth:<code>to</code> :func:<code>gone</code>'
    made = site_hooks.references(content)
    assert '<a href="#mxm_kernels.Folds.to"><code>to</code></a> <code>gone</code>' in made


def test_every_loss_stands_on_the_page_of_the_family():
    import mxm_kernels

    text = (ROOT / "docs" / "losses.md").read_text()
    losses = [name for name in mxm_kernels.__all__ if name.startswith("fused_")]
    assert losses
    for name in losses:
        module = name.removeprefix("fused_").removesuffix("_loss")
        used = name in text or f"{module}Loss".lower().replace("_", "") in text.lower()
        assert used, f"{name} is not on docs/losses.md"
