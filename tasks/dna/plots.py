"""Pictures of where motifs lie in sequences, and of letters place by place."""

from pathlib import Path

import torch
from torch import Tensor

from manifoldflow.tasks.common.plots import new_figure, save_figure
from manifoldflow.tasks.dna.evaluation import P_VALUE, Strands
from manifoldflow.tasks.dna.motifs import Motif, position_profile, site_score
from manifoldflow.tasks.dna.sequences import SequenceSet


def plot_profiles(
    made: SequenceSet,
    real: SequenceSet,
    motif: Motif,
    path: str | Path,
    *,
    origin: int = 0,
    p_value: float = P_VALUE,
    strands: Strands = "both",
) -> Path:
    """Where sites of a motif start, samples over real sequences, a panel for every class that both have.

    Args:
        made: samples.
        real: real sequences.
        motif: to look for.
        path: picture to write.
        origin: place that the axis calls 0, such as the start of transcription.
        p_value, strands: what counts as a site, and where; as in :func:`manifoldflow.tasks.dna.evaluation.compare_sets`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    least = site_score(motif, p_value)
    panels = _panels(made, real)
    figure = new_figure(8, 0.6 + 1.9 * len(panels), extra="dna")
    axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, (name, some, other) in zip(axes, panels, strict=True):
        for data, colour, text in ((other, "0.6", "real"), (some, "C0", "samples")):
            profile = position_profile(data.tokens, motif, least, mask=data.mask, both_strands=strands == "both")
            place = torch.arange(len(profile)) - origin
            axis.plot(place, profile, color=colour, linewidth=1.2, label=f"{text} ({len(data)})")
        axis.set_ylabel(f"{name}\nshare with a site")
        axis.legend(frameon=False, fontsize="small", loc="upper left")
        axis.grid(alpha=0.2)
    where = "on both strands" if strands == "both" else "on the strand as given"
    axes[0].set_title(f"{motif.name} ({motif.identifier}), sites of p = {p_value:g} {where}", fontsize="medium")
    axes[-1].set_xlabel("start of the site" + (", from the start of transcription" if origin else ""))
    return save_figure(figure, path, dpi=130)


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
