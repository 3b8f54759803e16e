import pytest
import torch

from examples.studies.cma_clip.attention import ClassTokens, EqualWeights
from examples.studies.cma_clip.model import PARTS, CMAClip
from examples.studies.cma_clip.sources import LiveTokens

from .tiny import CLASSES


def test_every_task_has_its_own_attention_and_head(model, data, splits):
    pairs = splits["train"].every()
    tokens = LiveTokens(model.encoders, data).tokens(pairs.images, pairs.texts)
    prediction = model(*tokens)
    assert {t: v.shape for t, v in prediction.logits.items()} == {
        t: (len(pairs), c) for t, c in CLASSES.items()
    }
    assert ((prediction.image_weight["shape"] - prediction.image_weight["colour"]).abs() > 0).any()
    prediction.logits["shape"].sum().backward()
    touched = {
        n.split(".")[1]
        for n, p in model.modality.named_parameters(prefix="m")
        if p.grad is not None
    }
    assert touched == {"shape"}
    assert all(p.grad is None for p in model.heads["colour"].parameters())


def test_the_parts_are_all_of_the_model(model):
    counted = sum(p.numel() for part in PARTS for p in getattr(model, part).parameters())
    assert counted == sum(p.numel() for p in model.parameters())


def test_the_ablations_leave_the_attentions_out(encoders):
    model = CMAClip(encoders, CLASSES, 2, 16, 2, sequence_attention=False, modality_attention=False)
    assert isinstance(model.sequence, ClassTokens)
    assert all(isinstance(m, EqualWeights) for m in model.modality.values())
    assert not list(model.modality.parameters())


def test_the_defaults_are_the_papers(encoders):
    model = CMAClip(encoders, CLASSES)
    assert len(model.sequence.layers) == 12
    assert model.sequence.norm.normalized_shape == (512,)
    assert model.sequence.layers[0].self_attn.num_heads == 8


@pytest.mark.parametrize("classes", [{}, {"shape": 1}])
def test_tasks_need_two_classes(encoders, classes):
    with pytest.raises(ValueError, match="classes must name tasks of two classes or more"):
        CMAClip(encoders, classes, 1, 16, 2)


def test_cached_tokens_are_the_live_ones(model, data, splits):
    live = LiveTokens(model.encoders, data)
    cached = live.cache()
    pairs = splits["val"].every()
    for a, b in zip(
        live.tokens(pairs.images, pairs.texts),
        cached.tokens(pairs.images, pairs.texts),
        strict=True,
    ):
        torch.testing.assert_close(a.class_token, b.class_token)
        torch.testing.assert_close(a.features, b.features)
        assert torch.equal(a.mask, b.mask)
        torch.testing.assert_close(a.sequence[a.mask], b.sequence[b.mask])
        assert not a.sequence.shape[1] > int(a.mask.sum(1).max())  # no column of padding alone
