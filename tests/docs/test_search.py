"""The site's search: the name of another library's loss leads to the page that replaces it.

The theme searches in the browser with lunr. This is its Python twin, set up as the theme does it:
no stemming, a term finds what begins with it, tags of HTML and the site's separator end a word.
"""

import json
import re

import pytest

pytest.importorskip("mkdocs", reason="the docs extra is not installed")
pytest.importorskip("lunr", reason="the test extra is not installed")

from lunr import lunr
from lunr.builder import Builder
from lunr.stop_word_filter import stop_word_filter

REPLACED = [
    "ClipLoss",
    "DistillClipLoss",
    "SigLipLoss",
    "CoCaLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "GISTEmbedLoss",
    "CachedGISTEmbedLoss",
    "NTXent",
    "NTXentLoss",
    "SupCon",
    "SupConLoss",
    "SupContrast",
    "SelfSupervisedLoss",
    "DCLLoss",
    "DCLWLoss",
    "InfoNCE",
    "cross_entropy",
    "CLIPModel",
    "return_loss",
    "SimCLR",
    "memeff",
    "siglip-kernel",
    "inf-cl",
    "lightly",
    "pytorch-metric-learning",
    "sentence-transformers",
]
GENERAL = ["temperature", "rounds", "folds", "install", "GradientCache"]  # of other pages


@pytest.fixture(scope="module")
def search(site):
    """A function from a query to the pages that are found, best first."""
    content = json.loads((site / "search" / "search_index.json").read_text())
    fields, separator = content["config"]["fields"], content["config"]["separator"]

    def words(text):
        return " ".join(re.split(separator, re.sub(r"<[^>]+>", " ", text).lower()))

    documents = [
        (
            {"location": d["location"], "title": words(d["title"]), "text": words(d["text"])},
            {"boost": d.get("boost", 1)},
        )
        for d in content["docs"]
    ]
    builder = Builder()
    builder.pipeline.add(stop_word_filter)
    index = lunr(
        ref="location",
        fields=[{"field_name": f, "boost": fields[f]["boost"]} for f in ("title", "text")],
        documents=documents,
        builder=builder,
    )

    def pages(query):
        terms = " ".join(f"{term}*" for term in words(query).split())
        return [hit["ref"].partition("#")[0] for hit in index.search(terms)]

    return pages


@pytest.mark.parametrize("name", REPLACED)
def test_a_name_leads_to_the_page_that_replaces_it(search, name):
    found = search(name)
    assert found
    assert found[0] == "from_x/" or found[0].startswith("hosts/")


@pytest.mark.parametrize("query", GENERAL)
def test_that_page_does_not_outrank_the_others(search, query):
    assert search(query)[0] != "from_x/"
