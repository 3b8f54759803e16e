"""Everything that is timed, ours and others'."""

from bench.providers import chunked, dense, ours, peers
from bench.providers.provider import Provider

ALL: list[Provider] = [
    *ours.PROVIDERS,
    *dense.PROVIDERS,
    *chunked.PROVIDERS,
    *peers.PROVIDERS,
]


def matching(prefixes: tuple[str, ...]) -> list[Provider]:
    """The providers whose names start with one of ``prefixes``; all without any."""
    return [p for p in ALL if not prefixes or p.name.startswith(prefixes)]
