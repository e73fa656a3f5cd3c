"""Pictures without a window: one way to begin a figure and one to write it."""

from pathlib import Path
from typing import Any

from manifoldflow.files import atomic

FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")


def new_figure(width: float, height: float, extra: str = "densities", **options: Any) -> Any:
    """A matplotlib figure of so many inches that needs no display.

    Args:
        width, height: in inches.
        extra: of the package, which brings matplotlib, for the message.
        options: of the figure; ``layout`` is constrained unless told.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'pictures need matplotlib: pip install "manifoldflow[{extra}]"') from error
    figure = Figure(figsize=(width, height), **({"layout": "constrained"} | options))
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: str | Path, dpi: int = 160, **options: Any) -> Path:
    """Write a figure, whole or not at all; the ending says the format.

    Raises:
        ValueError: no such format; says which there are.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the picture must end in one of {', '.join(FORMATS)}")
    with atomic(path) as fresh:
        figure.savefig(fresh, dpi=dpi, format=path.suffix.lower().lstrip("."), **({"facecolor": "white"} | options))
    return path
