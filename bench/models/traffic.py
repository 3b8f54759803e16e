"""How many bytes a rank sends in a step; tests/distributed holds the count to what is sent."""

from __future__ import annotations

from mxm_kernels.distributed.ranks import HEADER


def bytes_sent(
    images: tuple[int, ...],
    texts: tuple[int, ...],
    rank: int,
    *,
    width: int,
    teacher_width: int = 0,
    feature_bytes: int = 4,
    float8: bool = False,
    pairs: tuple[int, int] = (0, 0),
    gather: str = "all",
) -> dict[str, int]:
    """Bytes that a rank sends to others in a step, forward and backward, by what they are.

    Of a log-sum-exp loss in the mean, of float32 statistics, without row weights, label
    smoothing or diagnostics. An all-gather of n bytes from each rank counts as (W - 1) n, an
    all-reduce of n bytes as 2 (W - 1) / W n, which is what a ring of them sends.

    Args:
        images: image rows of each rank.
        texts: text rows of each rank.
        rank: which of them.
        width: D.
        teacher_width: D', 0 without a teacher.
        feature_bytes: 4 for float32, 2 for 16 bits.
        float8: the teacher is sent with 1 byte for a feature, and the factors are agreed on.
        pairs: positive pairs of its images with texts of other ranks, and of its texts with
            images of other ranks.
        gather: "all" or "ring".

    Example:
        >>> from bench.models.traffic import bytes_sent
        >>> step = bytes_sent((4096,) * 8, (4096,) * 8, 0, width=512, feature_bytes=2)
        >>> {name: f"{sent >> 10} KiB" for name, sent in step.items() if sent >> 10}
        {'ids': '448 KiB', 'features': '28672 KiB', 'gradients': '28672 KiB', 'columns': '224 KiB'}
    """
    W, N, mine = len(texts), sum(texts), texts[rank]
    forward, backward = (3, 2) if teacher_width else (1, 1)  # numbers for a column
    both = max(m + n for m, n in zip(images, texts, strict=True))
    row = width * feature_bytes + teacher_width * (1 if float8 else feature_bytes)
    if gather == "ring":
        passed_on = N - texts[(rank + 1) % W]
        features = 2 * passed_on * row
        gradients = N * width * 4 if W > 1 else 0
    else:
        features = (W - 1) * max(texts) * row
        gradients = (N - mine) * width * feature_bytes
    return {
        "agreement": (W - 1) * HEADER * 8,
        "ids": (W - 1) * both * 8,
        "features": features,
        "factors": 2 * (W - 1) * 8 // W if float8 else 0,
        "gradients": gradients,
        "columns": ((N - mine) * forward + (W - 1) * mine * backward) * 4,
        "pairs": sum(pairs) * 4,
        "loss": 2 * (2 * (W - 1) * 4 // W),
    }
