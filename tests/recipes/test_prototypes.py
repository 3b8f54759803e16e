"""docs/recipes/prototypes.py against dense forms and lightly."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from docs.recipes.prototypes import Centre, dino_loss, sinkhorn, swav_loss
from tests.recipes.agreement import SEEDS, assert_agrees, assert_agrees_in_16_bits, unit
from tests.support.processes import results

B, K = 5, 11
STUDENT, TEACHER = 0.125, 0.0625  # temperatures that every float type holds


def views(number: int, rows: int = B) -> dict[str, Tensor]:
    """Features of each view and the prototypes: what is learned."""
    return {**{f"view_{k}": unit(rows) for k in range(number)}, "prototypes": unit(K)}


def of_teacher(number: int) -> dict[str, Tensor]:
    made = {f"teacher_{k}": unit(B) for k in range(number)}
    return {**made, "teacher_prototypes": unit(K), "centre": 0.3 * torch.randn(K).double()}


def split(given: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """The student's views, the teacher's, and the rest."""
    rest = dict(given)
    students = [rest.pop(n) for n in given if n.startswith("view_")]
    teachers = [rest.pop(n) for n in given if n.startswith("teacher_") and n[-1].isdigit()]
    return students, teachers, rest


def dino(**given) -> Tensor:
    students, teachers, rest = split(given)
    temperatures = {"student_temperature": STUDENT, "teacher_temperature": TEACHER}
    return dino_loss(students, teachers, **rest, **temperatures)


def dense_dino(**given) -> Tensor:
    students, teachers, rest = split(given)
    losses = []
    for t, teacher in enumerate(teachers):
        logits = teacher @ rest["teacher_prototypes"].T - rest["centre"]
        targets = (logits / TEACHER).softmax(1)
        for v, student in enumerate(students):
            if v != t:
                log_p = (student @ rest["prototypes"].T / STUDENT).log_softmax(1)
                losses.append(-(targets * log_p).sum(1).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("students", "teachers"), [(2, 1), (2, 2), (5, 2)])
def test_dino(backend, students, teachers, seed):
    torch.manual_seed(seed)
    assert_agrees(dino, dense_dino, views(students), backend, of_teacher(teachers))


def test_dino_of_16_bit_features(backend):
    """All features, the teacher's too; the centre in float32."""

    def in_16_bits(**given):
        made = {n: t.to(given["view_0"].dtype) for n, t in given.items() if n[:8] == "teacher_"}
        return dino(**{**given, **made})

    student, teacher = views(3), of_teacher(2)
    teacher = {n: t if n == "centre" else t.bfloat16().double() for n, t in teacher.items()}
    assert_agrees_in_16_bits(in_16_bits, dense_dino, student, backend, teacher)


def test_dino_and_its_centre_of_lightly(backend):
    """Two steps: the first has the centre 0, the second that of the first."""
    loss = pytest.importorskip("lightly.loss").DINOLoss
    temperatures = {"warmup_teacher_temp": TEACHER, "teacher_temp": TEACHER}
    theirs = loss(K, **temperatures, student_temp=STUDENT, center_momentum=0.75).double()
    centre = Centre(K, momentum=0.75).double()
    for step in range(2):
        torch.manual_seed(step)
        student, teacher = views(4), of_teacher(2)
        teacher["centre"] = centre.value.clone()

        def of_lightly(**given):
            students, teachers, rest = split(given)
            outputs = [t @ rest["teacher_prototypes"].T for t in teachers]
            return theirs(outputs, [x @ rest["prototypes"].T for x in students])

        assert_agrees(dino, of_lightly, student, backend, teacher)
        teachers = [teacher["teacher_0"], teacher["teacher_1"]]
        centre.update(teachers, teacher["teacher_prototypes"])
        torch.testing.assert_close(centre.value, theirs.center.view(K))
    assert centre.value.abs().max() > 0.01


EPSILON = 0.0625


def dense_codes(features: Tensor, prototypes: Tensor, iterations: int) -> Tensor:
    """(B, K) Sinkhorn's codes from the matrix; the codes of an image have sum 1."""
    Q = (features @ prototypes.T / EPSILON).exp()
    for _ in range(iterations):
        Q = Q / Q.sum(0) / Q.shape[1]
        Q = Q / Q.sum(1, keepdim=True) / Q.shape[0]
    return Q * Q.shape[0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_sinkhorn(backend, iterations, seed):
    torch.manual_seed(seed)
    x, c = unit(B), unit(K)
    given = {"epsilon": EPSILON, "iterations": iterations, "backend": backend.name}
    for dtype in backend.dtypes:
        if dtype.itemsize > 2:
            features, prototypes = (t.to(backend.device, dtype).requires_grad_() for t in (x, c))
            f = sinkhorn(features, prototypes, **given)
            codes = (features @ prototypes.T / EPSILON + f).softmax(1)
            tolerance = 1e-4 if dtype == torch.float32 else 1e-10
            expected = dense_codes(x, c, iterations)
            torch.testing.assert_close(
                codes.detach().cpu().double(), expected, rtol=tolerance, atol=1e-9
            )
            assert not f.requires_grad
    if iterations == 50:  # all prototypes have the same share
        torch.testing.assert_close(
            expected.sum(0), torch.full((K,), B / K).double(), rtol=0.05, atol=0
        )


def swav(*, prototypes: Tensor, number: int, queue: list[Tensor] | None = None, backend, **given):
    """With codes of the first views; each of them has a queue of features of its own."""
    features = list(given.values())
    seen = [features[i].detach() for i in range(number)]
    if queue is not None:
        seen = [torch.cat([view, past]) for view, past in zip(seen, queue, strict=True)]
    offsets = [
        sinkhorn(view, prototypes.detach(), epsilon=EPSILON, backend=backend) for view in seen
    ]
    options = {"temperature": STUDENT, "epsilon": EPSILON, "backend": backend}
    return swav_loss(features, prototypes, offsets, **options)


def dense_swav(*, prototypes: Tensor, number: int, queue=None, **given):
    features, losses = list(given.values()), []
    for i in range(number):
        seen = features[i] if queue is None else torch.cat([features[i], queue[i]])
        codes = dense_codes(seen, prototypes, 3)[:B].detach()
        for k, view in enumerate(features):
            if k != i:
                log_p = (view @ prototypes.T / STUDENT).log_softmax(1)
                losses.append(-(codes * log_p).sum(1).mean())
    return torch.stack(losses).mean()


def of_lightly(*, prototypes: Tensor, number: int, queue=None, **given):
    lightly = pytest.importorskip("lightly.loss")
    loss = lightly.SwaVLoss(temperature=STUDENT, sinkhorn_iterations=3, sinkhorn_epsilon=EPSILON)
    outputs = [view @ prototypes.T for view in given.values()]
    past = None if queue is None else [view @ prototypes.T for view in queue]
    return loss(outputs[:number], outputs[number:], past).squeeze()


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize(("number", "total"), [(2, 2), (2, 5), (1, 3)])
@pytest.mark.parametrize("theirs", [dense_swav, of_lightly])
def test_swav(backend, theirs, number, total, queued):
    queue = [unit(7) for _ in range(number)] if queued else None
    assert_agrees(swav, theirs, views(total), backend, {"number": number, "queue": queue})


def shard(rank: int, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """A rank's rows of every view, and its prototypes: each prototype is on one rank."""
    images, prototypes = [slice(0, 2), slice(2, B)][rank], [slice(0, 7), slice(7, K)][rank]
    columns = "prototypes", "teacher_prototypes", "centre"
    return {n: t[prototypes if n in columns else images] for n, t in given.items()}


def of_ranks(rank: int, world: int, student, teacher) -> list[dict[str, Tensor]]:
    """Loss and gradients of DINO and of SwAV on a rank, and the moving centre."""
    made = []
    group = {"process_group": dist.group.WORLD} if world > 1 else {}
    for name in ("dino", "swav"):
        leaves = {n: t.clone().requires_grad_() for n, t in student.items()}
        own = (shard(rank, leaves), shard(rank, teacher)) if world > 1 else (leaves, teacher)
        if name == "dino":
            loss = dino(**own[0], **own[1], **group)
        else:
            features = [own[0][f"view_{k}"] for k in range(3)]
            given = {"epsilon": EPSILON, **group}
            c = own[0]["prototypes"]
            offsets = [sinkhorn(view.detach(), c.detach(), **given) for view in features[:2]]
            loss = swav_loss(features, c, offsets, temperature=STUDENT, **given)
        loss.backward()
        made.append({"loss": loss.detach(), **{n: t.grad for n, t in leaves.items()}})
    return made


def test_over_ranks():
    """Images and prototypes are split over ranks; DDP's average is the gradient of one process."""
    student, teacher = views(3), of_teacher(2)
    alone = of_ranks(0, 1, student, teacher)
    ranks = results(2, of_ranks, student, teacher)
    for k, expected in enumerate(alone):
        for made in ranks:
            torch.testing.assert_close(made[k]["loss"], expected["loss"])
        for name in student:
            average = (ranks[0][k][name] + ranks[1][k][name]) / 2
            torch.testing.assert_close(average, expected[name])
