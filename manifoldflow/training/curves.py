"""The curves of a training run: ``metrics.csv``, one row per logged step, and ``loss.png``."""

import csv
from pathlib import Path

from manifoldflow.files import atomic


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a table; a row that a crash cut off is left out."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("step", "").isdigit()]


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Replace a table, whole or not at all; its columns are all that the rows have."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic(path) as fresh, fresh.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def plot_losses(folder: Path) -> None:
    """``loss.png`` from ``metrics.csv``, validation dashed in the colour of training; left out where matplotlib is not
    installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = read_rows(folder / "metrics.csv")
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    skip = {"step", "minutes", "rate", "elements_per_s"}
    names = dict.fromkeys(k for row in rows for k in row if k not in skip)
    parts = [n for n in names if not n.startswith("val_") and n != "loss"]
    if len(parts) == 1:  # the loss has one term: its curve is that of the loss
        names = dict.fromkeys(n for n in names if n.removeprefix("val_") != parts[0])
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(n.removeprefix("val_") for n in names))}
    shown: list[float] = []
    for name in names:
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        shown += [value for _, value in points]
        if points:
            kind, is_total = name.removeprefix("val_"), name in ("loss", "val_loss")
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                color=colours[kind],
                linewidth=2 if is_total else 1,
                alpha=1 if name != kind or is_total else 0.5,
                linestyle="-" if name == kind else "--",
                marker="o" if len(points) == 1 else None,  # a line of one point shows nothing
            )
    spans_decades = bool(shown) and min(shown) > 0 and max(shown) > 3 * min(shown)
    axes.set(xlabel="step", ylabel="loss", yscale="log" if spans_decades else "linear")
    axes.grid(alpha=0.3)
    if rows:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    with atomic(folder / "loss.png") as fresh:
        figure.savefig(fresh, dpi=130)
