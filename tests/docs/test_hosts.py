"""The pages of docs/hosts: their length, their table, and what they say about other libraries."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from mxm_kernels import MFHLoss
from mxm_kernels.data import collate_multifold

pytest.importorskip("transformers")

import transformers

from tests.support.clip import instances, small_clip

ROOT = Path(__file__).parents[2]
HOSTS = ROOT / "docs" / "hosts"
SHORT = "clip_model", "trainer", "peft", "accelerate", "fsdp2", "lightning"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (HOSTS / "index.md").read_text().splitlines()
    if "`tests/" in line
]


@pytest.mark.parametrize("name", SHORT)
def test_a_page_is_thirty_lines(name):
    assert len((HOSTS / f"{name}.md").read_text().splitlines()) <= 30


def test_every_host_is_in_the_table():
    assert [row[0] for row in ROWS] == [
        "PyTorch loop",
        "torch.compile",
        "GradientCache",
        "DDP",
        "FSDP2",
        "Accelerate",
        "Lightning",
        "Fabric",
        "Trainer of transformers",
        "CLIPModel of transformers",
        "PEFT",
        "sentence-transformers",
        "open_clip, your loop",
        "open_clip's program",
        "webdataset",
        "torchdata",
    ]
    pages = {re.search(r"\(([^)#]*)", row[2])[1] for row in ROWS}
    assert {f"{name}.md" for name in SHORT} <= pages


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_page_and_the_test_of_a_host_exist(row):
    _, ids, page, test = row
    assert ids
    assert (HOSTS / re.search(r"\(([^)#]*)", page)[1]).is_file()
    file, _, function = test.strip("`").partition("::")
    assert re.search(rf"^def {function}\(", (ROOT / file).read_text(), re.MULTILINE)


def run_page(name, monkeypatch, folder):
    """The names that a page's Python leaves."""
    monkeypatch.chdir(folder)
    code = re.search(r"^```python\n(.*?)^```", (HOSTS / name).read_text(), re.M | re.S)[1]
    namespace = {}
    exec(compile(code, name, "exec"), namespace)
    return namespace


def test_clip_model_returns_what_its_page_says(monkeypatch, tmp_path):
    made = run_page("clip_model.md", monkeypatch, tmp_path)
    model, images, texts = made["model"], made["images"], made["texts"]
    assert model.logit_scale.grad != 0
    for features in (made["x"], made["y"]):  # what the page gives to the loss
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    with torch.no_grad():
        out = model(texts, images)
        sides = {
            "image": (out.image_embeds, model.get_image_features(pixel_values=images)),
            "text": (out.text_embeds, model.get_text_features(input_ids=texts)),
        }
    assert out.logits_per_text.shape == (len(texts), len(images))
    for embeds, returned in sides.values():
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(len(embeds)))
        projected = returned.pooler_output
        assert not torch.isclose(projected.norm(dim=1), torch.ones(())).any()
        torch.testing.assert_close(normalize(projected), embeds)


def test_the_loss_takes_a_scale_of_one_dimension():
    batch, model = collate_multifold(instances(4)), small_clip()
    out = model(batch.texts, batch.images)
    losses = [
        MFHLoss(rounds=None)(out.image_embeds, out.text_embeds, batch.folds, logit_scale=scale)
        for scale in (model.logit_scale.exp(), model.logit_scale.reshape(1).exp())
    ]
    assert torch.equal(*losses)


def test_peft_trains_and_loads_the_scale(monkeypatch, tmp_path):
    peft = pytest.importorskip("peft")
    made = run_page("peft.md", monkeypatch, tmp_path)
    model, again = made["model"], made["again"]
    trained = {name for name, value in model.named_parameters() if value.grad is not None}
    adapters = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(adapters) == 8 and trained - adapters == {"base_model.model.logit_scale"}
    base = transformers.CLIPModel.from_pretrained("base")
    assert model.logit_scale != base.logit_scale
    for name, value in base.named_parameters():  # the rest is as it was
        if name != "logit_scale":
            name = re.sub(r"\.([qv])_proj\.", r".\1_proj.base_layer.", name)
            assert torch.equal(value, model.base_model.model.get_parameter(name)), name
    with torch.no_grad():
        (x, y), (a, b) = (
            (out.image_embeds, out.text_embeds)
            for out in (m.eval()(made["texts"], made["images"]) for m in (model, again))
        )
        unadapted = base(made["texts"], made["images"]).image_embeds
    assert torch.equal(x, a) and torch.equal(y, b) and not torch.equal(x, unadapted)
    assert torch.equal(model.logit_scale, again.logit_scale)
    # What the page warns of: neither of them takes a parameter.
    loaded = peft.PeftModel.from_pretrained(base, "adapter")
    assert torch.equal(loaded.logit_scale, small_clip().logit_scale)
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["logit_scale"])
    assert not peft.get_peft_model(small_clip(), config).logit_scale.requires_grad


def collate(items):
    images, texts, _, *ids = collate_multifold(items)
    return {"pixel_values": images, "input_ids": texts, "labels": tuple(ids)}


def trainer(folder, **options):
    """As on its page, in one process."""
    model, criterion = small_clip(), MFHLoss(rounds=None)
    arguments = {
        "use_cpu": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "max_steps": 1,
        **options,
    }

    def mfh(out, ids, num_items_in_batch=None):
        return criterion(
            out.image_embeds, out.text_embeds, ids, logit_scale=model.logit_scale.exp()
        )

    arguments = transformers.TrainingArguments(str(folder), **arguments)
    items = instances(8)
    return transformers.Trainer(model, arguments, collate, items, items, compute_loss_func=mfh)


def test_trainer_reports_the_mean_of_the_losses(tmp_path):
    made = trainer(tmp_path)
    model, losses = made.model.eval(), []
    for start in (0, 4):
        batch = collate_multifold(instances(8)[start : start + 4])
        with torch.no_grad():
            out = model(batch.texts, batch.images)
            features = out.image_embeds, out.text_embeds
            scale = model.logit_scale.exp()
            losses.append(MFHLoss(rounds=None)(*features, batch.folds, logit_scale=scale))
    assert made.evaluate()["eval_loss"] == pytest.approx(float(sum(losses) / 2), rel=1e-5)
    assert "eval_loss" not in trainer(tmp_path, label_names=None).evaluate()


@pytest.mark.parametrize("keeps", [True, False])
def test_trainer_drops_the_column_of_ids(keeps, tmp_path):
    datasets = pytest.importorskip("datasets")
    made = trainer(tmp_path, remove_unused_columns=not keeps)
    made.train_dataset = datasets.Dataset.from_dict(
        {"instance": list(range(8)), "input_ids": [[1, 2, 3]] * 8}
    )
    seen = []

    def collator(rows):
        seen.extend(rows)
        return collate(instances(4))

    made.data_collator = collator
    next(iter(made.get_train_dataloader()))
    assert ("instance" in seen[0]) == keeps


def test_trainer_sums_the_gradients_of_accumulated_batches(tmp_path):
    """Unless it is told that nobody has divided them."""
    gradients = []

    class Kept(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **_):
            gradients.append(model.visual_projection.weight.grad.clone())

    for scaled in (None, False):
        made = trainer(tmp_path, gradient_accumulation_steps=2, max_grad_norm=0)
        made.add_callback(Kept())
        if scaled is not None:
            made.loss_is_scaled_for_ga = scaled
        made.train()
    torch.testing.assert_close(gradients[0], 2 * gradients[1])


def test_without_a_group_the_loss_has_none():
    assert dist.group.WORLD is None
    criterion = MFHLoss(process_group=dist.group.WORLD)
    assert "process_group=None" in str(criterion)
