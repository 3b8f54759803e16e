"""Everything that is timed, ours and others'."""

from bench.cases import Case
from bench.providers import chunked, dense, ours, peers, sigmoid
from bench.providers.provider import Provider

ALL: list[Provider] = [
    *ours.PROVIDERS,
    *dense.PROVIDERS,
    *chunked.PROVIDERS,
    *peers.PROVIDERS,
]


def named(name: str, case: Case) -> Provider:
    """The provider of that name, of the case's loss."""
    (found,) = [p for p in matching((name,), case) if p.name == name]
    return found


def matching(prefixes: tuple[str, ...], case: Case) -> list[Provider]:
    """The providers of the case's loss with one of ``prefixes``; all without any."""
    of_loss = sigmoid.PROVIDERS if case.sigmoid else ALL
    return [p for p in of_loss if not prefixes or p.name.startswith(prefixes)]
