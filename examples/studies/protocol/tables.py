"""Markdown of the differences that a study asked for before its runs."""

from collections.abc import Sequence

from .contrasts import LEVEL, Contrast, holm

PM = "\N{PLUS-MINUS SIGN}"


def question_table(asked: Sequence[tuple[str, Contrast]]) -> str:
    """A table of questions and their contrasts, with Holm's correction for their number."""
    lines = [
        "| question | difference in average | 95 % interval | smallest that could be seen "
        "| p, Holm | so it is |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for (question, f), p in zip(asked, holm([f.p for _, f in asked]), strict=True):
        verdict = f.verdict if p < LEVEL else "no difference seen"
        lines.append(
            f"| {question} | {f.mean:+.2f} {PM} {f.stderr:.2f} "
            f"| {f.low:+.2f} to {f.high:+.2f} | {f.smallest:.2f} "
            f"| {f'{p:.3f}' if p >= 0.001 else '< 0.001'} | {verdict} |"
        )
    return "\n".join(lines) + (
        f"\n\nHolm's correction is over these {len(asked)}. *Smallest that could be seen*: the "
        "true difference that four of five such studies would find."
    )
