"""Pictures of where motifs lie in sequences, and of letters place by place."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifoldflow.files import atomic
from manifoldflow.tasks.dna.evaluation import PROFILE_P_VALUE
from manifoldflow.tasks.dna.motifs import Motif, position_profile, threshold
from manifoldflow.tasks.dna.sequences import SequenceSet


def plot_profiles(made: SequenceSet, real: SequenceSet, motif: Motif, path: str | Path, *, origin: int = 0) -> Path:
    """Where sites of a motif start, samples over real sequences, a panel for every class that both have.

    Args:
        made: samples.
        real: real sequences.
        motif: scanned on the strand as given, from the score that random letters reach with probability 1e-3.
        path: picture to write.
        origin: place that the axis calls 0, such as the start of transcription.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'manifoldflow[dna]'") from error
    least = threshold(motif, PROFILE_P_VALUE)
    panels = _panels(made, real)
    figure = Figure(figsize=(8, 0.6 + 1.9 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, (name, some, other) in zip(axes, panels, strict=True):
        for data, colour, text in ((other, "0.6", "real"), (some, "C0", "samples")):
            profile = position_profile(data.tokens, motif, least, mask=data.mask)
            place = torch.arange(len(profile)) - origin
            axis.plot(place, profile, color=colour, linewidth=1.2, label=f"{text} ({len(data)})")
        axis.set_ylabel(f"{name}\nshare with a site")
        axis.legend(frameon=False, fontsize="small", loc="upper left")
        axis.grid(alpha=0.2)
    axes[0].set_title(f"{motif.name} ({motif.identifier})")
    axes[-1].set_xlabel("start of the site" + (", from the start of transcription" if origin else ""))
    return _save(figure, Path(path))


def _panels(made: SequenceSet, real: SequenceSet) -> list[tuple[str, SequenceSet, SequenceSet]]:
    """Samples and real sequences by class; all together where the samples have none."""
    if made.labels is None or real.labels is None:
        return [("all", made, real)]
    panels = []
    for number, name in enumerate(made.classes):
        if name in real.classes:
            here, there = _rows(made.labels, number), _rows(real.labels, real.classes.index(name))
            panels.append((name, made.rows(here), real.rows(there)))
    return panels or [("all", made, real)]


def _rows(labels: Tensor, number: int) -> Tensor:
    return (labels == number).nonzero().squeeze(1)


def _save(figure: Any, path: Path) -> Path:
    """The picture, complete or not at all."""
    with atomic(path) as fresh:
        figure.savefig(fresh, dpi=130)
    return path
