"""``python -m docs.figures NAME [FOLDER]``: write one figure; the folder is "." by default."""

import sys
from pathlib import Path

from docs.site_hooks import draw, figures


def main() -> None:
    """Write FOLDER/NAME.svg."""
    name, folder = (*sys.argv[1:], ".")[:2] if 2 <= len(sys.argv) <= 3 else ("", "")
    if name not in figures():
        sys.exit(f"usage: python -m docs.figures NAME [FOLDER], NAME one of {', '.join(figures())}")
    path = Path(folder) / f"{name}.svg"
    path.write_bytes(draw(name))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
