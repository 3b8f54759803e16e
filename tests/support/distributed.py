"""One batch, computed in one process and over the shards of several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

import mxm_kernels as mxm

D_IN, D = 6, 8


@dataclass(frozen=True)
class Layout:
    """Rows of every rank, and the instance of each row of the whole batch."""

    images: tuple[int, ...]
    texts: tuple[int, ...]
    image_ids: tuple[int, ...]
    text_ids: tuple[int, ...]

    @property
    def whole(self) -> Layout:
        """The same batch on one rank."""
        return replace(self, images=(sum(self.images),), texts=(sum(self.texts),))

    def rows(self, rank: int) -> tuple[slice, slice]:
        """Where a rank's image and text rows are."""
        return _range(self.images, rank), _range(self.texts, rank)


def _range(counts: tuple[int, ...], rank: int) -> slice:
    ends = list(accumulate(counts))
    return slice(ends[rank] - counts[rank], ends[rank])


def layout(world: int, kind: str = "straddling") -> Layout:
    """Batches over ``world`` ranks.

    "even": shards of one size, whole instances. "straddling": unequal shards, groups across
    ranks. "no pairs": the last rank's rows have no positive on it or anywhere. "no images",
    "no texts": the last rank has no row of one modality.
    """
    g = torch.Generator().manual_seed(world)
    if kind == "even":
        ids = torch.arange(2 * world)
        images, texts = ids.repeat_interleave(3), ids.repeat_interleave(2)
        return Layout((6,) * world, (4,) * world, tuple(images.tolist()), tuple(texts.tolist()))
    images = [5 + 2 * rank for rank in range(world)]
    texts = [9 - rank for rank in range(world)]
    if kind == "no images" and world > 1:
        images[-1] = 0
    if kind == "no texts" and world > 1:
        texts[-1] = 0
    image_ids = torch.randint(0, 7, (sum(images),), generator=g)
    text_ids = torch.randint(0, 8, (sum(texts),), generator=g)
    image_ids[0] = text_ids[0] = 3
    if kind == "no pairs" and world > 1:
        image_ids[-images[-1] :] = 100
        text_ids[-texts[-1] :] = 200
    return Layout(tuple(images), tuple(texts), tuple(image_ids.tolist()), tuple(text_ids.tolist()))


class Towers(nn.Module):
    """Two linear encoders and the logit scale, in shape [1] since FSDP2 shards no 0-d tensor."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.image = nn.Linear(D_IN, D, dtype=dtype)
        self.text = nn.Linear(D_IN, D, dtype=dtype)
        self.log_scale = nn.Parameter(torch.tensor([2.0], dtype=dtype))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            normalize(self.image(images), dim=1),
            normalize(self.text(texts), dim=1),
            self.log_scale.exp(),
        )


def inputs(layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs, teacher features and weights of every row of the whole batch."""
    g = torch.Generator().manual_seed(5)
    made = {}
    for side, rows in (("image", sum(layout.images)), ("text", sum(layout.texts))):
        made[side] = torch.randn(rows, D_IN, generator=g, dtype=torch.float64).to(dtype)
        teacher = torch.randn(rows, D, generator=g, dtype=torch.float64).to(dtype)
        made[f"teacher_{side}"] = normalize(teacher, dim=1)
        made[f"weights_{side}"] = torch.rand(rows, generator=g, dtype=torch.float64).to(dtype)
        for ids in ("exclude", "within"):
            made[f"{ids}_{side}"] = torch.randint(-1, 3, (rows,), generator=g)
    made["queue_ids"] = torch.tensor([0, -1, 1, 2])
    made["queue"] = normalize(torch.randn(4, D, generator=g, dtype=torch.float64).to(dtype), dim=1)
    return made


FLOAT8 = {"teacher_dtype": torch.float8_e4m3fn}


def _of_rows(*features: Any, **options: Any) -> Tensor:
    """A loss that the package does not have: InfoNCE with a margin and the soft loss."""
    rows = mxm.contrastive_rows(*features, **options)
    n, S, s = rows.neg_lse, rows.positives, rows.logit_scale
    margin = rows.sum(softplus(rows.spread(n) - S + 0.1 * s)) / rows.counts.clamp(min=1)
    joint = torch.logaddexp(n, rows.logsumexp(S))
    return rows.mean(margin) + rows.mean(joint - rows.teacher_mean, of_every_row=True)


# name -> (function, options); "teacher", "weights" and the like stand for tensors of the batch.
LOSSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "mfh": (mxm.fused_mfh_loss, {"rounds": 5, "teacher": True}),
    "mfh expectation": (mxm.fused_mfh_loss, {"rounds": None, "teacher": True}),
    "hard": (mxm.fused_hard_loss, {"rounds": 3}),
    "soft": (mxm.fused_soft_loss, {"teacher": True}),
    "info_nce": (mxm.fused_info_nce_loss, {}),
    "info_nce unmasked": (
        mxm.fused_info_nce_loss,
        {"mask_false_negatives": False, "label_smoothing": 0.1},
    ),
    "supcon out": (mxm.fused_supcon_loss, {"positives": "out"}),
    "supcon in": (mxm.fused_supcon_loss, {"positives": "in", "label_smoothing": 0.2}),
    "decoupled": (mxm.fused_decoupled_loss, {}),
    # At 0.05 eq. 8 cancels in a row of these inputs, to 15 times the rounding of any other loss.
    "debiased": (mxm.fused_debiased_loss, {"positive_prior": 0.02}),
    "self distillation": (mxm.fused_self_distillation_loss, {"soft_share": 0.4}),
    "siglip": (mxm.fused_siglip_loss, {"bias": True}),
    "siglip weighted": (
        mxm.fused_siglip_loss,
        {"bias": True, "weights": True, "row_scales": True, "queues": True},
    ),
    "intra modal": (mxm.fused_intra_modal_loss, {"rounds": 4}),
    "intra modal expectation": (
        mxm.fused_intra_modal_loss,
        {"rounds": None, "mask_positives": False},
    ),
    "intra modal soft": (
        mxm.fused_intra_modal_loss,
        {"rounds": None, "soft_weight": 0.5},
    ),
    "cwcl": (mxm.fused_cwcl_loss, {"teacher": True}),
    "rows": (_of_rows, {"teacher": True, "image_to_text_weight": 0.3}),
    "weighted": (
        mxm.fused_mfh_loss,
        {"rounds": 2, "teacher": True, "weights": True, "image_to_text_weight": 0.3},
    ),
    "image to text": (mxm.fused_hard_loss, {"rounds": None, "image_to_text_weight": 1.0}),
    "soft shares": (mxm.fused_hard_loss, {"rounds": None, "teacher": True, "soft_rows": True}),
    "row scales": (mxm.fused_mfh_loss, {"rounds": None, "teacher": True, "row_scales": True}),
    "queues": (mxm.fused_mfh_loss, {"rounds": None, "teacher": True, "queues": True}),
    "float8 teacher": (mxm.fused_mfh_loss, {"rounds": None, "teacher": True, **FLOAT8}),
    "float8 teacher, queues": (
        mxm.fused_mfh_loss,
        {"rounds": None, "teacher": True, "queues": True, "row_scales": True, **FLOAT8},
    ),
    "told": (
        mxm.fused_mfh_loss,
        {"rounds": None, "teacher": True, "offsets": True, "teacher_offsets": True, "ids": True},
    ),
    "told, smoothed": (
        mxm.fused_supcon_loss,
        {"offsets": True, "ids": True, "row_scales": True, "label_smoothing": 0.1},
    ),
    "told, queues": (
        mxm.fused_mfh_loss,
        {"rounds": 3, "teacher": True, "offsets": True, "ids": True, "told_queues": True},
    ),
    "told siglip": (mxm.fused_siglip_loss, {"bias": True, "offsets": True, "ids": True}),
    "told debiased": (mxm.fused_debiased_loss, {"positive_prior": 0.02, "ids": True}),
    "told cwcl": (mxm.fused_cwcl_loss, {"teacher": True, "offsets": True}),
    "told intra modal": (mxm.fused_intra_modal_loss, {"rounds": None, "soft_weight": 0.5}),
    **{
        name: (function, {"filter_margin": 0.1, **options})
        for name, (function, options) in {
            "filter": (mxm.fused_mfh_loss, {"rounds": None, "teacher": True, "ids": True}),
            "filter alone": (mxm.fused_info_nce_loss, {"teacher": True, "offsets": True}),
            "filter, float8, scales, queues": (
                mxm.fused_mfh_loss,
                {
                    "rounds": None,
                    "teacher": True,
                    "row_scales": True,
                    "told_queues": True,
                    "ids": True,
                    "filter_strategy": "relative",
                    **FLOAT8,
                },
            ),
            "filter by itself": (mxm.fused_self_distillation_loss, {"soft_share": 0.4}),
            "filter debiased": (
                mxm.fused_debiased_loss,
                {"positive_prior": 0.02, "teacher": True, "label_smoothing": 0.1},
            ),
        }.items()
    },
}
# Of these a ring cannot see all texts at once.
FILTERED = [name for name, (_, options) in LOSSES.items() if "filter_margin" in options]


def loss(
    name: str, layout: Layout, rank: int, features, dtype: torch.dtype, group, **more: Any
) -> Any:
    """The loss of a rank's rows; ``features`` are its (x, y, scale)."""
    function, options = LOSSES[name]
    options = {**options, **more}
    x, y, scale = features
    rows, cols = layout.rows(rank)
    data = inputs(layout, dtype)
    if group is None:
        options.pop("gather", None)
    given: dict[str, Any] = {"process_group": group}
    if name == "told intra modal":
        given |= {
            "offsets": 2 * features[1].sum(1),
            "teacher_offsets": data["weights_text"][cols],
            "exclude_ids": data["exclude_text"][cols],
            "within_ids": data["within_text"][cols],
            "filter_margin": None if more.get("gather") == "ring" else 0.1,
        }
    if name in ("intra modal soft", "told intra modal"):
        given["teacher_features"] = data["teacher_text"][cols]
        given["row_weights"] = data["weights_text"][cols]
    if options.pop("teacher", False):
        given["teacher_image_features"] = data["teacher_image"][rows]
        given["teacher_text_features"] = data["teacher_text"][cols]
    sides = data["weights_image"][rows], data["weights_text"][cols]
    if options.pop("weights", False):
        given["image_weights"], given["text_weights"] = sides
    if options.pop("soft_rows", False):
        given["soft_weight"] = sides
    if options.pop("row_scales", False):
        scale = scale * (1 + sides[0]), scale * (1 + sides[1])
    if options.pop("queues", False):
        given["image_queue"] = given["text_queue"] = data["queue"]
    given |= _rules(options, features, data, (rows, cols))
    if "rounds" in options or "soft_share" in options:
        given["generator"] = torch.Generator().manual_seed(9)
    if options.pop("bias", False):
        given["logit_bias"] = -scale if isinstance(scale, Tensor) else -features[2]
    ids = torch.tensor(layout.image_ids), torch.tensor(layout.text_ids)
    if "intra modal" in name:  # of the texts, and nothing of the images
        return function(y, ids[1][cols], logit_scale=scale, **options, **given) + 0 * x.sum()
    folds = () if "cwcl" in name else ((ids[0][rows], ids[1][cols]),)
    return function(x, y, *folds, logit_scale=scale, **options, **given)


def _rules(
    options: dict[str, Any], features: Any, data: dict[str, Tensor], places: tuple[slice, slice]
) -> dict[str, Any]:
    """Offsets that depend on the features, ids, and queues with both."""
    given: dict[str, Any] = {}
    sides = ("image", "text")
    if options.pop("offsets", False):
        for side, rows in zip(sides, features[:2], strict=True):
            given[f"{side}_offsets"] = 2 * rows.sum(1)
    if options.pop("teacher_offsets", False):
        for side, place in zip(sides, places, strict=True):
            given[f"teacher_{side}_offsets"] = data[f"weights_{side}"][place]
    if options.pop("ids", False):
        for ids in ("exclude", "within"):
            of_sides = [data[f"{ids}_{side}"][p] for side, p in zip(sides, places, strict=True)]
            given[f"{ids}_ids"] = tuple(of_sides)
    if options.pop("told_queues", False):
        queue, ids = data["queue"], data["queue_ids"]
        told = mxm.Queue(queue, None, queue.sum(1), ids, ids.flip(0), queue.flip(1))
        given["image_queue"] = given["text_queue"] = told
    return given


def step(name: str, layout: Layout, rank: int, model: nn.Module, dtype, group, **more: Any):
    """Forward and backward of a rank's rows; the loss."""
    rows, cols = layout.rows(rank)
    data = inputs(layout, dtype)
    features = model(data["image"][rows], data["text"][cols])
    value = loss(name, layout, rank, features, dtype, group, **more)
    value.backward()
    return value.detach()


def one_process(name: str, layout: Layout, dtype: torch.dtype, **more: Any):
    """Loss and parameter gradients of the whole batch, without a process group."""
    model = Towers(dtype)
    value = step(name, layout.whole, 0, model, dtype, None, **more)
    return value, {n: p.grad for n, p in model.named_parameters()}


def wrapped_step(rank, world, names, kind, wrapper, dtype, more):
    """What every rank has after a step of a wrapped model: loss and averaged gradients."""
    results = {}
    for name in names:
        model = Towers(dtype)
        shown: Any = model
        if wrapper == "ddp":
            shown = nn.parallel.DistributedDataParallel(model)
        elif wrapper == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            shown = fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
        value = step(name, layout(world, kind), rank, shown, dtype, dist.group.WORLD, **more)
        grads = {n: p.grad for n, p in model.named_parameters()}
        if wrapper == "fsdp":
            grads = {n: g.full_tensor() for n, g in grads.items()}
        results[name] = value, {n: g.clone() for n, g in grads.items()}
    return results


def counted_step(rank, world, name, gather):
    """Bytes that this rank sends to others in a step, counted where they are sent."""
    sent = []

    def count(tensor, times=1.0):
        sent.append(int(tensor.numel() * tensor.element_size() * times))

    new = hasattr(dist, "all_gather_single")  # in newer versions of torch
    all_gather = "all_gather_single" if new else "all_gather_into_tensor"
    real_gather = getattr(dist, all_gather)

    def gathered(out, rows, group):
        count(rows, world - 1)
        return real_gather(out, rows, group=group)

    def exchanged(out, rows, receive, send, group, real=dist.all_to_all_single):
        for peer, part in enumerate(rows.split(send)):
            if peer != rank:
                count(part)
        return real(out, rows, receive, send, group=group)

    def reduced(value, real=dist.all_reduce, **options):
        count(value, 2 * (world - 1) / world)
        return real(value, **options)

    def passed(operations, real=dist.batch_isend_irecv):
        for operation in operations:
            if operation.op is dist.isend:
                count(operation.tensor)
        return real(operations)

    setattr(dist, all_gather, gathered)
    dist.all_to_all_single = exchanged
    dist.all_reduce, dist.batch_isend_irecv = reduced, passed
    step(
        name,
        layout(world),
        rank,
        Towers(),
        torch.float32,
        dist.group.WORLD,
        gather=gather,
        backend="blocked",
    )
    return sum(sent)


def straddling_pairs(plan: Layout, rank: int) -> tuple[int, int]:
    """Pairs of a rank's images with texts of other ranks, and of its texts with their images."""
    rows, cols = plan.rows(rank)
    same = torch.tensor(plan.image_ids)[:, None] == torch.tensor(plan.text_ids)
    inside = int(same[rows, cols].sum())
    return int(same[rows].sum()) - inside, int(same[:, cols].sum()) - inside
