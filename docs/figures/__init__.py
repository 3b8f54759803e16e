"""The figures of the site, one module each: ``draw`` returns a matplotlib figure.

``make docs`` draws them all; ``python -m docs.figures NAME`` writes one to NAME.svg to look at.
"""

IMAGE, TEXT, DRAWN, QUIET = "#1f6f8b", "#c8553d", "#e9a820", "#d9dee2"
