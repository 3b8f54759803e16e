"""The page about papers: every title once, a state for each, links and names that exist."""

import hashlib
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

from mxm_kernels import Options
from tests.support.surface import MODULES

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "literature.md").read_text()
LINES = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and line.count(" | ") == 3 and not line.startswith("| paper |")
]
# Of the sorted titles, one a line: the list of papers is no part of the repository.
TITLES = "967b3e0030fb6ce0f1bd098175b45daa78839f460338073d0632f49e2ffd4541"
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
LOCAL = sorted({target for _, target in LINK.findall(TEXT) if not target.startswith("https:")})
PUBLIC = {
    f"{module.__name__}.{name}".removeprefix("mxm_kernels."): getattr(module, name)
    for module in MODULES
    for name in module.__all__
}


def title(line):
    """Without the link around it."""
    return re.sub(r"^\[(.*)\]\(.*\)$", r"\1", line[0])


def names(text):
    """What stands between backticks, without the value of an option."""
    return [name.partition("=")[0] for name in re.findall(r"`([^`]*)`", text)]


def takes(function, option):
    """Whether a public function has an option, its own or a shared one."""
    if option in inspect.signature(function).parameters:
        return True
    shared = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    return shared and option in Options.__annotations__ and option not in function.not_taken


def anchors(page):
    """The names of the sections of a page, and on the reference of everything public."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.*?)(?: \{#([\w-]+)\})?$", text, re.MULTILINE)
    slugs = {name or re.sub(r"\W+", "-", heading.lower()).strip("-") for heading, name in headings}
    return slugs | set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))


def test_every_paper_is_on_one_line():
    assert len(LINES) == 77
    assert not [name for name, times in Counter(map(title, LINES)).items() if times > 1]
    titles = "\n".join(sorted(map(title, LINES)))
    assert hashlib.sha256(titles.encode()).hexdigest() == TITLES


def test_the_states_are_those_of_the_first_table_and_counted_there():
    counted = re.findall(r"^\| ([a-z ]+) \| .* \| (\d+) \|$", TEXT, re.MULTILINE)
    assert {state: int(papers) for state, papers in counted} == Counter(line[2] for line in LINES)
    assert [state for state, _ in counted] == ["covered", "recipe", "in part", "not yet", "none"]


@pytest.mark.parametrize("line", LINES, ids=lambda line: title(line)[:30])
def test_a_line_says_what_its_state_promises(line):
    _, about, state, where = line
    assert about and where
    public = any(name in PUBLIC for name in names(where))
    recipe = "](recipes/" in where
    assert {
        "covered": public,
        "recipe": recipe,
        "in part": (public or recipe) and (";" in where),
        "not yet": not LINK.search(where),
        "none": not LINK.search(where),
    }[state]


@pytest.mark.parametrize("line", LINES, ids=lambda line: title(line)[:30])
def test_a_line_names_public_functions_and_options_that_they_take(line):
    named = names(line[3])
    every = [f for name, f in PUBLIC.items() if name.startswith("fused_")]
    functions = [PUBLIC[name] for name in named if name in PUBLIC] or every
    for name in named:
        assert name in PUBLIC or any(takes(f, name) for f in functions if inspect.isfunction(f)), (
            name
        )


@pytest.mark.parametrize("target", LOCAL)
def test_a_link_leads_to_a_section_that_exists(target):
    page, _, section = target.partition("#")
    assert (DOCS / page).is_file()
    assert not section or section in anchors(DOCS / page)


def test_a_function_has_one_link():
    links = {(name, target) for name, target in LINK.findall(TEXT) if name.startswith("`")}
    assert len(links) == len({name for name, _ in links})
    for name, target in links:
        page, _, section = target.partition("#")
        stem = name.strip("`").removeprefix("fused_").removesuffix("_loss")
        if page == "losses.md":
            assert section.replace("-", "") == stem.replace("_", "")


def test_the_page_stands_after_the_family_of_losses():
    nav = (DOCS.parent / "mkdocs.yml").read_text()
    assert "The loss family: losses.md\n  - Which paper is where: literature.md\n" in nav
