"""The public surface is the one written down."""

import inspect

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


@pytest.mark.parametrize("name", mxm_kernels.__all__)
def test_it_is_documented(name):
    member = getattr(mxm_kernels, name)
    assert inspect.getdoc(member)
    if inspect.isclass(member):
        for attribute, value in vars(member).items():
            if callable(value) and not attribute.startswith("_"):
                assert inspect.getdoc(value), attribute
