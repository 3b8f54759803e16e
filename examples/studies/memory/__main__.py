"""Command line: `python -m examples.studies.memory --help`."""

from .study import main

if __name__ == "__main__":
    raise SystemExit(main())
