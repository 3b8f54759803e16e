"""``python -m docs.figures NAME``: write one figure to look at."""

import sys
from pathlib import Path

from docs.site_hooks import draw, figures


def main() -> None:
    """Write NAME.svg into the current folder."""
    if len(sys.argv) != 2 or sys.argv[1] not in figures():
        sys.exit(f"usage: python -m docs.figures NAME, with NAME one of {', '.join(figures())}")
    path = Path(f"{sys.argv[1]}.svg")
    path.write_bytes(draw(sys.argv[1]))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
