"""The figures of the site, one module each: ``draw`` returns a matplotlib figure.

``make docs`` draws them all; ``python -m docs.figures NAME [FOLDER]`` writes one to NAME.svg.
time_and_memory.svg is committed, since the README shows it.
"""

IMAGE, TEXT, DRAWN, QUIET = "#1f6f8b", "#c8553d", "#e9a820", "#d9dee2"
