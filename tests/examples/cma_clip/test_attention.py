import pytest
import torch
from torch.nn.functional import softmax

from examples.studies.cma_clip.attention import (
    ClassTokens,
    EqualWeights,
    KeylessAttention,
    SequenceAttention,
)
from examples.studies.cma_clip.tokens import Tokens


def tokens(batch, length, width, padding=0):
    mask = torch.ones(batch, length, dtype=torch.bool)
    if padding:
        mask[:, -padding:] = False
    return Tokens(torch.randn(batch, width), torch.randn(batch, length, width), mask, None)


def test_the_default_transformer_is_the_papers():
    module = SequenceAttention(512, 512)
    layers = list(module.layers)
    assert len(layers) == 12
    assert {layer.self_attn.num_heads for layer in layers} == {8}
    # In each layer: attention 4 (d² + d), MLP 8 d² + 5 d, two norms 4 d.
    d = 512
    assert sum(p.numel() for p in module.layers.parameters()) == 12 * (12 * d * d + 13 * d)
    with torch.no_grad():
        outputs = module(tokens(2, 49, 512), tokens(2, 76, 512, padding=60))
    assert [tuple(o.shape) for o in outputs] == [(2, 512), (2, 512)]


@pytest.fixture
def small():
    return SequenceAttention(8, 12, layers=2, width=16, heads=4).eval()


def test_padding_does_not_matter(small):
    image, text = tokens(3, 4, 8), tokens(3, 6, 12, padding=2)
    before = small(image, text)
    text.sequence[:, -2:] = 100.0
    torch.testing.assert_close(small(image, text), before)
    shorter = Tokens(text.class_token, text.sequence[:, :4], text.mask[:, :4], None)
    torch.testing.assert_close(small(image, shorter), before)


def test_the_last_layer_for_the_class_tokens_is_the_whole_layer_there(small):
    image, text = tokens(3, 4, 8), tokens(3, 6, 12, padding=2)
    for got, place in zip(small(image, text), (0, 1 + 4), strict=True):
        hidden, padding = small.input(image, text)
        for layer in small.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        torch.testing.assert_close(got, small.norm(hidden)[:, place])


def test_each_class_token_sees_the_other_modality(small):
    image, text = tokens(3, 4, 8), tokens(3, 6, 12)
    first = small(image, text)
    text.sequence[1, 2] += 1
    second = small(image, text)
    image.sequence[2, 0] += 1
    third = small(image, text)
    for before, after, row in ((first, second, 1), (second, third, 2)):
        for a, b in zip(before, after, strict=True):
            changed = (a - b).abs().amax(1) > 1e-4
            assert changed.tolist() == [i == row for i in range(3)]


def test_order_of_tokens_does_not_matter(small):
    image, text = tokens(2, 4, 8), tokens(2, 6, 12)
    turned = Tokens(text.class_token, text.sequence.flip(1), text.mask, None)
    torch.testing.assert_close(small(image, text), small(image, turned), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_relevance_is_the_layers_query_times_key(small, layer):
    image, text = tokens(2, 4, 8), tokens(2, 6, 12, padding=1)
    got = small.relevance(image, text, layer)
    small.requires_grad_(False)
    seen = {}
    block = small.layers[layer]
    block.norm1.register_forward_hook(lambda *hook: seen.update(hidden=hook[2]))
    block.train()  # the fused inference path calls no norm
    small(image, text)
    weight, bias = block.self_attn.in_proj_weight, block.self_attn.in_proj_bias
    for pair in range(2):
        for token in range(6):
            query = weight[:16] @ seen["hidden"][pair, 1 + 4 + 1 + token] + bias[:16]
            for patch in range(4):
                key = weight[16:32] @ seen["hidden"][pair, 1 + patch] + bias[16:32]
                want = float(query @ key) / 4**0.5  # 16 wide, 4 heads of 4
                assert float(got[pair, token, patch]) == pytest.approx(want, rel=1e-3, abs=1e-4)


def test_relevance_names_the_layers_it_has(small):
    with pytest.raises(ValueError, match="layer must be one of 2 layers, got 2"):
        small.relevance(tokens(1, 4, 8), tokens(1, 3, 12), 2)


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="heads must divide width=10, got 4"):
        SequenceAttention(8, 8, width=10, heads=4)


def test_keyless_attention_is_equations_3_to_6():
    module = KeylessAttention(5)
    image, text = torch.randn(7, 5), torch.randn(7, 5)
    fused, weight = module(image, text)
    w = module.w.weight[0]
    e = torch.stack([image @ w, text @ w], dim=1)
    share = softmax(e, dim=1)
    torch.testing.assert_close(weight, share[:, 0])
    torch.testing.assert_close(fused, share[:, :1] * image + share[:, 1:] * text)


def test_the_ablations_are_fixed_weights_and_the_encoders_tokens():
    image, text = tokens(3, 4, 8), tokens(3, 6, 8)
    fused, weight = EqualWeights()(image.class_token, text.class_token)
    torch.testing.assert_close(fused, (image.class_token + text.class_token) / 2)
    assert weight.tolist() == [0.5] * 3
    module = ClassTokens(8, 8, 8)
    before = module(image, text)
    image.sequence += 1
    text.sequence += 1
    torch.testing.assert_close(module(image, text), before)
