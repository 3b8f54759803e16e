"""The public surface is the one written down."""

import inspect
import re

import pytest

import mxm_kernels
from tests.support.surface import FILE, surface


def test_it_is_the_committed_one():
    assert surface() == FILE.read_text(), "run `make surface` and note the change in CHANGELOG.md"


def test_a_change_of_a_signature_shows(monkeypatch):
    def fused_mfh_loss(image_features, text_features, folds, *, scale):
        """Another one."""

    monkeypatch.setattr(mxm_kernels, "fused_mfh_loss", fused_mfh_loss)
    assert surface() != FILE.read_text()


def test_a_new_name_shows(monkeypatch):
    monkeypatch.setattr(mxm_kernels, "__all__", [*mxm_kernels.__all__, "__version__"])
    assert "__version__: str\n" in surface()


FUNCTIONS = [n for n in mxm_kernels.__all__ if inspect.isfunction(getattr(mxm_kernels, n))]
CLASSES = [n for n in mxm_kernels.__all__ if inspect.isclass(getattr(mxm_kernels, n))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_documented(name):
    function = getattr(mxm_kernels, name)
    text, signature = inspect.getdoc(function), inspect.signature(function)
    returns = [] if signature.return_annotation == "None" else ["Returns:"]
    for section in ("Args:", *returns, "Raises:", "Example:"):
        assert f"\n{section}\n" in text
    parameters = signature.parameters.values()
    for parameter in parameters:
        stars = r"\*\*" if parameter.kind is parameter.VAR_KEYWORD else ""
        assert re.search(rf"^    {stars}{parameter.name}: ", text, re.MULTILINE), parameter.name
    if any("Tensor" in str(parameter.annotation) for parameter in parameters):
        assert re.search(r"\((M|R|G|K), ", text), "no shape"


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n.startswith("fused_")])
def test_a_loss_names_its_equation_and_its_source(name):
    text = inspect.getdoc(getattr(mxm_kernels, name))
    assert re.search(r"^    .*(_i|L) +[=] ", text, re.MULTILINE), "no equation"
    assert re.search(r"arXiv \d{4}\.\d{4,5}|et al\., [A-Z]+ \d{4}", text.replace("\n", " ")), (
        "no source"
    )


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_and_its_methods_are_documented(name):
    kind = getattr(mxm_kernels, name)
    assert inspect.getdoc(kind)
    for attribute, value in vars(kind).items():
        if callable(value) and not attribute.startswith("_"):
            assert inspect.getdoc(value), attribute


@pytest.mark.parametrize("name", [n for n in CLASSES if n.endswith("Loss")])
def test_a_module_has_an_example_and_names_its_function(name):
    text = inspect.getdoc(getattr(mxm_kernels, name))
    assert "Example:" in text
    assert re.search(r":func:`fused_\w+`", text)
    parameters = inspect.signature(getattr(mxm_kernels, name)).parameters.values()
    for parameter in parameters:
        assert f"{parameter.name}: " in text, parameter.name
