# %% [markdown]
# # A tour of mxm_kernels on 300 emoji
#
# This script computes a multifold contrastive loss and compares it with a dense computation. It
# shows what the loss's random rounds do, trains two linear layers and looks at what they
# retrieve. It takes about a minute of CPU time.
#
# Open it as a notebook in VS Code, or in Jupyter with jupytext, and run it cell by cell. Or run
# all of it: `make tour`, or `python -m examples.tour`. The data and the encoders come with the
# packages of the `examples` extra: `pip install -e '.[examples]'`.

# %%
import sys
from pathlib import Path

# A notebook starts in the folder of its file. The package `examples` is above it.
sys.path[:0] = [str(p) for p in (Path.cwd(), *Path.cwd().parents) if (p / "examples/tour").is_dir()]

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch.nn.functional import normalize, softplus

from examples.data.emoji import load_emoji
from examples.encoders.packaged import packaged_encoders
from examples.finetune.figure import draw_text_queries
from examples.finetune.inputs import Material, observe
from mxm_kernels import Folds, fused_hard_loss
from mxm_kernels.retrieval import retrieval_metrics

torch.manual_seed(0)
FIGURES = Path(globals().get("FIGURES", "runs/tour"))  # `python -m examples.tour` names a folder
FIGURES.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The data
#
# - An **instance** is one thing that is shown and described. Here it is an emoji.
# - An **observation** is one picture or one caption of an instance. An emoji has 3 or 5 pictures,
#   from three sets of artwork, and 2 or more captions: its names and lists of its keywords.
# - The **fold** of an instance is all of its observations. CLIP's loss takes one picture and one
#   caption from each fold. A multifold loss takes the whole fold.
#
# 240 emoji are for training. 60 are held out: nothing is trained on them.

# %%
every = load_emoji()
chosen = np.random.default_rng(0).permutation(len(every))[:300]
instances = [every[place] for place in chosen]
training, held_out = instances[:240], instances[240:]
example = training[0]
print(f"{example.name} has {len(example.images)} pictures and the captions {example.captions}")

# %% [markdown]
# Two frozen encoders turn the observations into vectors. EfficientNet-Lite0 makes 1,280 numbers
# of each picture, MiniLM 384 of each caption. They were trained apart from each other, so their
# vectors cannot be compared yet. `image_ids[i]` is the number of the instance of picture i, and
# `text_ids[j]` that of caption j.

# %%
encoders = packaged_encoders("heads", image_size=64, embed_dim=128, temperature=0.05)
train_data, test_data = (observe(part, encoders, progress=False) for part in (training, held_out))
pictures, captions = torch.stack(list(train_data.images)), torch.stack(list(train_data.texts))
image_ids, text_ids = train_data.image_ids, train_data.text_ids
print(f"{len(training)} instances: pictures {(*pictures.shape,)}, captions {(*captions.shape,)}")

# %% [markdown]
# ## The loss
#
# A linear layer on each side, a *head*, maps the vectors into one space of 128 dimensions. The
# features are their outputs, scaled to length 1:
#
# - `x` of shape (M, 128) has one **row** for each picture,
# - `y` of shape (N, 128) has one **row** for each caption.
#
# The **positives** of a picture are the captions of the same emoji, and the positives of a
# caption are the pictures of the same emoji. All other pairs are negatives. `Folds` says which
# rows belong to the same instance. `logit_scale` is one over the temperature.

# %%
image_head = torch.nn.Linear(pictures.shape[1], 128, bias=False)
text_head = torch.nn.Linear(captions.shape[1], 128, bias=False)
folds = Folds.from_ids(image_ids, text_ids)
SCALE = 1 / 0.05

x, y = normalize(image_head(pictures)), normalize(text_head(captions))
loss = fused_hard_loss(x, y, folds, logit_scale=SCALE, rounds=None)
loss.backward()  # into both heads
print(f"loss of {len(x)} x {len(y)} rows: {loss.item():.6f}")

# %% [markdown]
# The same number in a few lines of dense float64. They make the whole M x N matrix of
# similarities. The package does not need it: it computes the loss from the features. With n the
# log-sum-exp of a row over its negatives, a positive at similarity S has the loss softplus(n -
# S). The loss of a row is the mean over its positives. The loss of the batch is the mean over the
# rows of pictures and the mean over the rows of captions, half each.


# %%
def dense_rows(S, positive):
    """The loss of each row of a matrix of similarities."""
    n = S.masked_fill(positive, -torch.inf).logsumexp(1, keepdim=True)
    return (softplus(n - S) * positive).sum(1) / positive.sum(1)


S = SCALE * x.detach().double() @ y.detach().double().T
positive = image_ids[:, None] == text_ids[None, :]
dense = (dense_rows(S, positive).mean() + dense_rows(S.T, positive.T).mean()) / 2
difference = abs(loss.item() - dense.item()) / dense.item()
print(f"dense float64: {dense.item():.6f}, a relative difference of {difference:.1e}")

# %% [markdown]
# ## Rounds
#
# Not every caption fits every picture of its emoji. So MXM-CLR draws *one* positive of each row
# at random and leaves its other positives out. It repeats this for R **rounds** and takes the
# mean. `rounds=None`, as above, is the mean over infinitely many rounds: the expectation. It is
# exact and draws nothing.
#
# The figure has 32 draws for each R. The drawn losses lie around the expectation, and four times
# as many rounds halve their spread. More rounds do not take more time, since they only change how
# much each positive counts.

# %%
ROUNDS, DRAWS = (1, 4, 16, 64, 256), 32
generator = torch.Generator().manual_seed(0)
drawn = {
    R: torch.stack(
        [
            fused_hard_loss(
                x.detach(), y.detach(), folds, logit_scale=SCALE, rounds=R, generator=generator
            )
            for _ in range(DRAWS)
        ]
    )
    for R in ROUNDS
}
spread = {R: values.std().item() for R, values in drawn.items()}

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for R, values in drawn.items():
    left.scatter([R] * DRAWS, values, s=12, alpha=0.4, color="#2171b5", label="a draw" * (R == 1))
left.axhline(loss.item(), color="black", ls="--", label="expectation, rounds=None")
left.set(xscale="log", xlabel="rounds R", ylabel="loss", title="The loss of 32 draws")
right.plot(ROUNDS, list(spread.values()), "o-", color="#2171b5", label="measured")
halved = [spread[1] / R**0.5 for R in ROUNDS]
right.plot(ROUNDS, halved, color="black", ls="--", label="spread at R = 1, over the root of R")
right.set(xscale="log", yscale="log", xlabel="rounds R", ylabel="standard deviation")
right.set_title("Their spread")
for axes in (left, right):
    axes.set_xticks(ROUNDS, [str(R) for R in ROUNDS])
    axes.minorticks_off()
    axes.legend(frameon=False)
figure.savefig(FIGURES / "rounds.png", dpi=110)

# %% [markdown]
# ## Training
#
# The two heads and the temperature learn from all observations of all 240 emoji in every step,
# with 10 rounds. Recall@k on the 60 held-out emoji says how often one of the first k answers is
# right: pictures are the answers to a caption, captions the answers to a picture.


# %%
def held_out_features():
    """Features of the held-out pictures and captions."""
    inputs = zip((image_head, text_head), (test_data.images, test_data.texts), strict=True)
    with torch.no_grad():
        return [normalize(head(torch.stack(list(vectors)))) for head, vectors in inputs]


def recall():
    """Recall on the held-out emoji, of both directions."""
    test_images, test_texts = held_out_features()
    test_folds = Folds.from_ids(test_data.image_ids, test_data.text_ids)
    return retrieval_metrics(test_images, test_texts, test_folds, recall_at=(1, 5, 10))


log_scale = torch.nn.Parameter(torch.tensor(SCALE).log())
parameters = [*image_head.parameters(), *text_head.parameters(), log_scale]
optimizer = torch.optim.Adam(parameters, lr=3e-3)
before, losses = recall(), []
for _ in range(60):
    optimizer.zero_grad()
    x, y = normalize(image_head(pictures)), normalize(text_head(captions))
    step_loss = fused_hard_loss(x, y, folds, logit_scale=log_scale.exp(), rounds=10)
    step_loss.backward()
    optimizer.step()
    losses.append(step_loss.item())
after = recall()

figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
axes[0].plot(range(1, len(losses) + 1), losses, color="#2171b5")
axes[0].set(title="Training loss", xlabel="step", ylabel="loss")
for panel, direction in zip(axes[1:], ("text_to_image", "image_to_text"), strict=True):
    for result, label, colour, offset in (
        (before, "before", "#c6dbef", -0.2),
        (after, "after", "#2171b5", 0.2),
    ):
        found = getattr(result, direction).recall
        shares = [100 * share for share in found.values()]
        bars = panel.bar(np.arange(len(found)) + offset, shares, 0.38, color=colour, label=label)
        panel.bar_label(bars, fmt="%.0f", padding=2)
    panel.set_xticks(range(len(found)), [f"recall@{k}" for k in found])
    panel.set(title=direction.replace("_", " ").capitalize(), ylabel="percent", ylim=(0, 108))
    panel.legend(frameon=False, loc="upper left")
figure.savefig(FIGURES / "training.png", dpi=110)
print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}")
for k in (1, 5, 10):
    shares = [100 * result.text_to_image.recall[k] for result in (before, after)]
    print(f"caption to picture, recall@{k}: {shares[0]:.0f} % before, {shares[1]:.0f} % after")

# %% [markdown]
# ## Retrieval
#
# Eight captions of held-out emoji and the five pictures that lie nearest to each. A green frame
# marks a picture of the right emoji. The captions were not chosen by how well they do: they are
# evenly spaced among the 60 emoji.

# %%
images, texts = held_out_features()
material = Material(held_out, train_data, test_data)
result = SimpleNamespace(material=material, images=images, texts=texts)
figure = plt.figure(figsize=(9, 11), layout="constrained")
grid: Any = figure.subfigures()
draw_text_queries(grid, result, queries=8)
figure.savefig(FIGURES / "retrieval.png", dpi=90)

# %% [markdown]
# ## From here
#
# - `fused_mfh_loss` adds a momentum teacher to this loss; `examples/quickstart.py` trains with
#   one.
# - `examples/finetune` trains the encoders too, in some minutes: `make demo`.
# - `docs/losses.md` has the other losses. They take the same `x`, `y` and `folds`.
