"""One self-contained HTML page about a set of backbones: a 3D view, plots and numbers beside those of the training set.

    python -m manifoldflow.tasks.proteins.reference --reference CHAINS... --out data/reference/protein_backbones.json

makes the reference statistics from prepared data sets or npz files.
"""

import base64
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import manifoldflow
from manifoldflow.checkpoint import read_metadata
from manifoldflow.tasks.common.tables import share
from manifoldflow.tasks.proteins import metrics, plots, ribbon, secondary_structure, similarity
from manifoldflow.tasks.proteins.geometry import atoms_from_frames
from manifoldflow.tasks.proteins.overview import draw_overview
from manifoldflow.tasks.proteins.reference import (
    Reference,
    ca_steps,
    chain_table,
    load_reference,
    metric_reference,
    reference_statistics,
    write_text,
)
from manifoldflow.tasks.proteins.reference import main as reference_main
from manifoldflow.tasks.proteins.sequences import load_natives

__all__ = ["load_reference", "measure", "reference_statistics", "write_overview", "write_report"]

Samples = Tensor | Mapping[str, Tensor]
HERE = Path(__file__).parent
SHOWN = 60  # chains in the viewer; more would make the page large and no easier to read
TM_CHAINS = 16  # pairwise TM-scores are computed here up to this many samples


@dataclass
class Measured:
    """Samples with everything that the page and the picture show, padding still on; see `measure`."""

    coords: Tensor
    mask: Tensor
    residue_index: Tensor | None
    states: Tensor
    table: dict[str, NDArray[np.float64]]
    names: list[str]
    reference: Reference | None
    overall: dict[str, float]

    @property
    def numbers(self) -> list[list[int]]:
        """Residue numbers of each chain as in the written files: ``residue_index`` + 1."""
        if self.residue_index is None:
            return [list(range(1, int(n) + 1)) for n in self.mask.sum(1).tolist()]
        return [(row[real] + 1).tolist() for row, real in zip(self.residue_index, self.mask, strict=True)]

    def chain(self, i: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        """Atoms (n, 4, 3), states (n,) and bonds (n-1,) of one sample without padding."""
        real = self.mask[i]
        index = None if self.residue_index is None else self.residue_index[i : i + 1, real]
        joined = metrics.bonded(torch.ones(1, int(real.sum()), dtype=torch.bool), index)[0]
        return self.coords[i, real].double().numpy(), self.states[i, real].numpy(), joined.numpy()

    def path(self, i: int) -> NDArray[np.float64]:
        """The ribbon of one sample, centred and upright."""
        coords, states, joined = self.chain(i)
        return ribbon.ribbon_path(ribbon.upright(coords), states, joined)


def measure(
    samples: Samples,
    mask: Tensor,
    *,
    reference: Reference | str | Path | None = None,
    residue_index: Tensor | None = None,
    names: Sequence[str] | None = None,
    extra: Mapping[str, float] | None = None,
) -> Measured:
    """Measure a set of backbones once, for `write_report` and `write_overview`.

    Args:
        samples: frames ``{"trans": (B, N, 3), "rots": (B, N, 3, 3)}`` or atoms (B, N, 4, 3), angstrom.
        mask: (B, N) bool, True = real.
        reference: statistics, or their file; default: those of the training set, which ship with the library.
        residue_index: (B, N).
        names: of the samples; default ``sample_000``, as `write_pdb` names its files.
        extra: numbers measured elsewhere (``pairwise_tm``, ``novelty_tm``).
    """
    mask = mask.detach().cpu().bool()
    index = None if residue_index is None else residue_index.detach().cpu()
    if isinstance(samples, Mapping):
        frames = {name: samples[name].detach().cpu().float() for name in ("trans", "rots")}
        coords = atoms_from_frames(frames, mask, index)
    else:
        coords = samples.detach().cpu().float()
    if coords.ndim != 4 or coords.shape[2:] != (4, 3) or coords.shape[:2] != mask.shape:
        raise ValueError(f"samples of shape {tuple(coords.shape)} do not fit a mask of shape {tuple(mask.shape)}")
    if not len(coords) or int(mask.sum(1).min()) < 3:
        raise ValueError("a report needs at least one sample, and 3 residues in each")
    if not bool(torch.isfinite(coords[mask]).all()):
        raise ValueError("samples hold coordinates that are not finite")
    if not isinstance(reference, dict):
        reference = load_reference(reference)
    overall = metrics.summarize(coords, mask, index, metric_reference(reference)) | dict(extra or {})
    if "pairwise_tm" not in overall and 2 <= len(coords) <= TM_CHAINS:
        overall["pairwise_tm"] = similarity.mean_pairwise_tm(similarity.ca_traces(coords, mask))
    return Measured(
        coords,
        mask,
        index,
        secondary_structure.assign(coords, mask, index),
        chain_table(coords, mask, index, reference),
        [f"sample_{i:03d}" for i in range(len(coords))] if names is None else list(names),
        reference,
        overall,
    )


def write_report(
    samples: Samples | Measured,
    mask: Tensor | None,
    out: str | Path,
    *,
    reference: Reference | str | Path | None = None,
    title: str = "Generated protein backbones",
    command: str = "",
    checkpoint_info: Mapping[str, Any] | None = None,
    residue_index: Tensor | None = None,
    timings: Mapping[str, float] | None = None,
    names: Sequence[str] | None = None,
    extra: Mapping[str, float] | None = None,
) -> Path:
    """Write the page: one HTML file that needs neither a network nor anything beside it.

    Args:
        samples: what `measure` takes, or its result (then ``mask`` and what `measure` was given are not read).
        out: the HTML file; folders are made.
        reference, residue_index, names, extra: see `measure`.
        title: headline.
        command: the command line that makes these samples again.
        checkpoint_info: name and value of everything worth knowing of the model and the run (seed, steps, ...).
        timings: name and seconds of what was measured.
    """
    if not isinstance(samples, Measured):
        if mask is None:
            raise ValueError("write_report needs mask= unless it is given the result of measure()")
        samples = measure(samples, mask, reference=reference, residue_index=residue_index, names=names, extra=extra)
    m = samples
    body = "".join(
        [
            _header(m, title, timings),
            _viewer(m),
            _structure(m),
            _plots(m),
            _table(m),
            _about(command, checkpoint_info or {}, timings or {}, m),
        ]
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{(HERE / 'report.css').read_text()}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f"<footer>Made by manifoldflow {manifoldflow.__version__}. This page works offline.</footer>\n</main>\n"
        f'<script type="application/json" id="chains">{_chains_json(m)}</script>\n'
        f"<script>\n{(HERE / 'viewer.js').read_text()}</script>\n</body>\n</html>\n"
    )
    return write_text(out, page)


def write_overview(
    samples: Samples | Measured,
    mask: Tensor | None,
    out_png: str | Path,
    *,
    reference: Reference | str | Path | None = None,
    title: str = "Generated protein backbones",
    residue_index: Tensor | None = None,
    names: Sequence[str] | None = None,
    extra: Mapping[str, float] | None = None,
) -> Path:
    """Write one picture (PNG) of up to eight backbones, their torsions, structure content, sizes and key numbers."""
    if not isinstance(samples, Measured):
        if mask is None:
            raise ValueError("write_overview needs mask= unless it is given the result of measure()")
        samples = measure(samples, mask, reference=reference, residue_index=residue_index, names=names, extra=extra)
    return draw_overview(samples, out_png, title)


def checkpoint_facts(checkpoint: str | Path) -> dict[str, str]:
    """What a checkpoint's file says about its training, a word and a value each, for the report."""
    metadata = read_metadata(checkpoint)
    facts = {"checkpoint made by": f"manifoldflow {metadata['version']}"}
    facts |= {_label(name): _shown(value) for name, value in metadata["training"].items() if value is not None}
    return facts


def _label(name: str) -> str:
    label = "settings" if name == "train" else name.replace("_", " ")
    return label if label.startswith("training") else f"training {label}"


def _shown(value: Any) -> str:
    """A fact in words: no braces, brackets or quotes."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(k).replace('_', ' ')} {_shown(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _header(m: Measured, title: str, timings: Mapping[str, float] | None) -> str:
    lengths = m.table["length"].astype(int)
    span = f"{lengths.min()} to {lengths.max()}" if lengths.min() < lengths.max() else f"{lengths.min()}"
    chips = [("backbones", str(len(lengths))), ("residues each", span)]
    chips += [(f"{name}, mean of chains", _percent(float(m.table[name].mean()))) for name in ("helix", "strand")]
    if "pairwise_tm" in m.overall:
        chips.append(("mean pairwise TM-score", f"{m.overall['pairwise_tm']:.2f}"))
    if timings and "sampling" in timings:
        chips.append(("sampled in", _seconds(timings["sampling"])))
    items = "".join(f"<li>{label} <b>{value}</b></li>" for label, value in chips)
    return f'<header><h1>{escape(title)}</h1><ul class="chips">{items}</ul></header>'


def _viewer(m: Measured) -> str:
    ramp = ", ".join(ribbon.RAINBOW)
    more = f" The first {SHOWN} of {len(m.names)} are shown." if len(m.names) > SHOWN else ""
    return (
        '<section class="card" id="viewer" data-colour="structure"><div class="hero"><div><div class="stage">'
        '<canvas id="view" tabindex="0" aria-label="3D view of a backbone; arrow keys turn it, plus and minus '
        'zoom"></canvas>'
        '<div id="tip" hidden></div></div><p id="caption"></p>'
        f'<div class="legend"><span class="structure">{_legend("helix")}</span><span '
        f'class="structure">{_legend("strand")}</span>'
        f'<span class="structure">{_legend("coil")}</span><span class="rainbow">N terminus'
        f'<span class="ramp" style="background:linear-gradient(90deg,{ramp})"></span>C terminus</span></div>'
        '<div class="tools"><button type="button" data-scheme="structure" aria-pressed="true">Secondary '
        "structure</button>"
        '<button type="button" data-scheme="rainbow" aria-pressed="false">N to C</button>'
        '<button type="button" id="spin" aria-pressed="false">Spin</button><button type="button" id="home">Reset '
        "view</button>"
        '<button type="button" id="save">Save picture</button></div><p class="sub" style="margin:10px 0 0">Drag to '
        "turn, "
        f"scroll or pinch to zoom, shift-drag to move, point at a residue for its number.{more}</p></div>"
        '<div id="picker" role="group" aria-label="Choose a backbone"></div></div></section>'
    )


def _legend(name: str, label: str = "", css: str = "", color: str = "") -> str:
    return f'<i class="{css}" style="background:var(--{color or name})"></i>{label or name}'


def _structure(m: Measured) -> str:
    longest = int(m.table["length"].max())
    rows = []
    for i, letters in enumerate(secondary_structure.letters(m.states, m.mask)[:SHOWN]):
        share = {name: float(m.table[name][i]) for name in ("helix", "strand", "coil")}
        mix = "".join(f'<i style="width:{100 * v:.1f}%;background:var(--{k})"></i>' for k, v in share.items())
        numbers = f"H {_percent(share['helix'])} · E {_percent(share['strand'])} · coil {_percent(share['coil'])}"
        rows.append(
            '<button type="button" class="name" '
            f'data-chain="{i}">{escape(m.names[i])}</button>{plots.strip(letters, longest)}'
            f'<div class="mix" title="{numbers}">{mix}</div><span class="numbers">{numbers}</span>'
        )
    return (
        '<section class="card"><h2>Secondary structure</h2><p class="sub">From backbone hydrogen bonds (DSSP rules), '
        "along each chain from N to C terminus, and as a share of its residues.</p><div "
        f"class='legend'><span>{_legend('helix')}</span>"
        f"<span>{_legend('strand')}</span><span>{_legend('coil')}</span></div><div "
        f'class="rows">{"".join(rows)}</div></section>'
    )


def _plots(m: Measured) -> str:
    torsions = metrics.torsions(m.coords, m.mask, m.residue_index)
    (phi, has_phi), (psi, has_psi) = torsions["phi"], torsions["psi"]
    valid = has_phi & has_psi
    numbers, counters = m.numbers, m.mask.cumsum(1) - 1
    where = valid.nonzero().tolist()
    step = max(1, math.ceil(len(where) / 4000))  # beyond this, dots hide each other and the page grows
    labels = [f"{m.names[i]}, residue {numbers[i][int(counters[i, j])]}" for i, j in where][::step]
    x, y = (torch.rad2deg(a[valid]).double().numpy()[::step] for a in (phi, psi))
    rama = plots.ramachandran_plot(x, y, m.states[valid].numpy()[::step], labels, m.reference)
    content = plots.content_plot(m.table["helix"], m.table["strand"], m.names, m.reference)
    steps = ca_steps(m.coords, m.mask, m.residue_index)
    beyond = int(((steps < 3.3) | (steps > 4.3)).sum())
    note = f" {beyond} of {len(steps)} distances lie outside this range and are not drawn." if beyond else ""
    known = "training chains" if m.reference else ""
    thinned = f" One residue in {step} is drawn." if step > 1 else ""
    return (
        '<div class="pair"><section class="card"><h2>Ramachandran plot</h2><p class="sub">Backbone torsions of the '
        "samples over the "
        f"density of the training set: contours hold 20, 50, 80, 98 and 99.9 % of its residues.{thinned}</p>"
        "<div "
        f'class="legend"><span>{_legend("helix")}</span><span>{_legend("strand")}</span><span>{_legend("coil")}</span>'
        f"<span>{_legend('reference', 'training set')}</span></div>{rama}</section>"
        '<section class="card"><h2>Helix and strand content</h2><p class="sub">One dot per sample, over the number of '
        "training chains "
        "with that content. Click a dot to see the backbone.</p><div "
        f'class="legend"><span>{_legend("accent", "samples")}</span>'
        f"<span>{_legend('reference', known)}</span></div>{content}</section></div>"
        '<div class="pair"><section class="card"><h2>Distance of neighbouring Cα atoms</h2><p class="sub">A trans '
        "peptide bond keeps them "
        f"3.8 Å apart; green marks 3.8 ± 0.15 Å.{note}</p><div "
        f'class="legend"><span>{_legend("accent", "samples")}</span>'
        f"<span>{_legend('reference', 'training set', 'line')}</span></div>{plots.ca_plot(steps, m.reference)}</section>"
        '<section class="card"><h2>Size against length</h2><p class="sub">Line: least-squares fit to the training set. '
        "Band: its 5 to 95 % "
        f'range. Dashed: ± 20 % of the fit.</p><div class="legend"><span>{_legend("accent", "samples")}</span>'
        f"<span>{_legend('reference', 'fit and range', 'line')}</span><span>{_legend('reference', '± 20 %', 'dash')}</span></div>"
        f"{plots.rg_plot(m.table['length'], m.table['rg'], m.names, m.reference)}</section></div>"
    )


# column of chain_table: label, what it is, format, whether a mean below / above the training set's is worth a note
_ROWS: dict[str, tuple[str, str, str, bool, bool]] = {
    "ca_ca_within": ("Cα–Cα within 3.8 ± 0.15 Å", "share of bonded neighbours", "%", True, False),
    "ca_ca": ("Cα–Cα distance", "Å, mean over a chain", ".3f", True, True),
    "c_n": ("Peptide bond C–N", "Å, mean over a chain", ".3f", True, True),
    "c_n_within": ("C–N within 1.33 ± 0.15 Å", "share of peptide bonds", "%", True, False),
    "ca_c_n": ("Angle Cα–C–N", "degrees, mean over a chain", ".1f", True, True),
    "c_n_ca": ("Angle C–N–Cα", "degrees, mean over a chain", ".1f", True, True),
    "omega_trans": ("Trans peptide bonds", "|ω| above 150°", "%", True, False),
    "rama_favoured": (
        "Favoured torsions",
        "inside the contour that holds 98 % of the training residues",
        "%",
        True,
        False,
    ),
    "clashes": ("Cα clashes per chain", "pairs closer than 3.0 Å, not neighbours", ".2f", False, True),
    "atom_clashes": (
        "Clashes of backbone atoms per chain",
        "pairs closer than 2.2 Å, not neighbours",
        ".2f",
        False,
        True,
    ),
    "helix": ("Helix", "share of a chain's residues", "%", True, True),
    "strand": ("Strand", "share of a chain's residues", "%", True, True),
    "coil": ("Coil", "share of a chain's residues", "%", True, True),
    "rg_ratio": ("Radius of gyration / fit", "1 = the training set's fit at that length", ".2f", True, True),
}
_ALIKE = 0.25
"""Means closer than this share of the training chains' standard deviation are alike."""
_WORDS = {"alike": "ok", "better": "ok", "unclear": "unsure", "lower": "out", "higher": "out"}


def compare_means(
    values: NDArray[np.float64], known: Mapping[str, float], chains: int, mind_low: bool = True, mind_high: bool = True
) -> tuple[str, float, float]:
    """How the mean of some samples lies to that of the training chains: a word, the difference and the half of its 95 % interval.

    The word is "alike" where the whole interval lies within a quarter of the chains' standard deviation, "lower" or "higher"
    where it excludes 0 and the means are further apart than that ("better" where that side is none to mind), and "unclear"
    otherwise: too few samples to tell.

    Args:
        values: one a sample.
        known: ``mean`` and ``std`` of the training chains.
        chains: how many those are.
        mind_low, mind_high: sides that are worse.
    """
    spread = float(values.std(ddof=1)) if len(values) > 1 else known["std"]
    # Few samples may be alike by chance: their own spread counts no less than the chains' where there are fewer than 20.
    spread = max(spread, known["std"]) if len(values) < 20 else spread
    difference = float(values.mean()) - known["mean"]
    half = 1.96 * math.sqrt(spread**2 / len(values) + known["std"] ** 2 / max(chains, 1))
    margin = max(_ALIKE * known["std"], 1e-3 * abs(known["mean"]))
    if (difference < 0 and not mind_low) or (difference > 0 and not mind_high):
        return ("alike" if abs(difference) <= margin else "better"), difference, half
    if abs(difference) + half <= margin:
        return "alike", difference, half
    if abs(difference) > max(half, margin):
        return ("higher" if difference > 0 else "lower"), difference, half
    return ("alike" if abs(difference) <= margin and abs(difference) > half else "unclear"), difference, half


def _row(label: str, what: str, cells: Sequence[str]) -> str:
    """A row of the table; on a phone every cell is told its column."""
    heads = ("samples", "training set", "difference")
    shown = "".join(f'<td class="n" data-label="{h}">{c}</td>' for h, c in zip(heads, cells, strict=True))
    return f"<tr><td>{label}<small>{what}</small></td>{shown}</tr>"


def _verdict(word: str, more: str = "") -> str:
    return f'<span class="{_WORDS[word]}">{word}</span>{more and f"<small>{more}</small>"}'


def _table(m: Measured) -> str:
    reference = m.reference or {}
    known = reference.get("per_chain", {})
    body, notes = [], []
    for name, (label, what, style, mind_low, mind_high) in _ROWS.items():
        values = m.table[name][np.isfinite(m.table[name])] if name in m.table else np.zeros(0)
        if not len(values):
            continue
        mean = float(values.mean())
        mine = f"{_number(mean, style)} ± {_number(float(values.std()), style)}"
        theirs = verdict = "–"
        if name in known:
            k = known[name]
            theirs = (
                f"{_number(k['mean'], style)} <small>{_number(k['q05'], style)} to {_number(k['q95'], style)}</small>"
            )
            word, difference, half = compare_means(values, k, reference["chains"], mind_low, mind_high)
            apart = f"{'+' if difference > 0 else ''}{_number(difference, style)} ± {_number(half, style)}"
            verdict = _verdict(word, apart.replace(" %", " points") if style == "%" else apart)
            if word in ("lower", "higher"):
                notes.append(
                    f"<b>{label}</b>: the mean of {len(values)} samples, {_number(mean, style)}, is {word} than the "
                    f"training set's {_number(k['mean'], style)}."
                )
        body.append(_row(label, what, (mine, theirs, verdict)))
    rows, more = _set_rows(m)
    notes += more
    good = "<p>No mean is known to differ from the training set's.</p>"
    listed = f'<ul class="notes">{"".join(f"<li>{n}</li>" for n in notes)}</ul>' if notes else good
    about = ""
    if reference:
        a, b = reference["lengths"]
        about = (
            f"Training set: {reference['chains']:,} experimental chains of {a} to {b} residues, "
            f"{reference['residues']:,} residues in all. "
            "Every number is of chains, not of residues. Samples: mean ± standard deviation over chains; training set: mean, "
            "and the range of the middle 90 % of chains; last column: difference of the means with its 95 % interval. "
            "<i>alike</i>: within a quarter of the training chains' standard deviation; <i>unclear</i>: too few samples to "
            "tell. Bonds and angles within a residue are set by construction and not listed."
        )
    head = "<tr><th>per chain</th><th>samples</th><th>training set</th><th>difference of the means</th></tr>"
    return (
        f'<section class="card"><h2>Samples beside the training set</h2><p class="sub">{about}</p><div '
        f'class="wide"><table><thead>{head}</thead>'
        f"<tbody>{''.join(body)}{rows}</tbody></table></div><h2 style='margin-top:20px'>What to "
        f"note</h2>{listed}</section>"
    )


def _set_rows(m: Measured) -> tuple[str, list[str]]:
    """Rows and notes about the set as a whole."""
    reference, rows, notes = m.reference or {}, [], []

    def row(label: str, what: str, mine: str, theirs: str, verdict: str = "–") -> None:
        rows.append(_row(label, what, (mine, theirs, verdict)))

    count = len(m.names)
    for name, label, what in (
        ("has_atom_clash", "Chains with a clash", "a pair of backbone atoms closer than 2.2 Å; 95 % interval"),
        ("rg_within", "Size within 20 % of the fit", "share of chains; 95 % interval"),
    ):
        hit: Any = m.table.get(name)
        if name == "rg_within" and "rg_ratio" in m.table:
            hit = np.abs(m.table["rg_ratio"] - 1) <= 0.2
        if hit is not None:
            known = reference.get("per_chain", {}).get(name)
            row(label, what, share(float(hit.sum()), count), _number(known["mean"], "%") if known else "–")
    if "rama_js_distance" in m.overall:
        value, groups = m.overall["rama_js_distance"], reference.get("small_samples", {})
        theirs, verdict = "–", "–"
        if groups:
            size = min(groups, key=lambda k: abs(math.log(groups[k]["residues"] / max(m.overall["residues"], 1))))
            group = groups[size]
            theirs = f"{group['mean']:.2f} <small>{size} random chains; 95 % below {group['q95']:.2f}</small>"
            high = value > group["q95"]
            verdict = _verdict("higher" if high else "alike")
            if high:
                notes.append(
                    f"<b>Ramachandran distance</b>: {value:.2f}; groups of {size} real chains are at "
                    f"{group['mean']:.2f} on average."
                )
        row(
            "Ramachandran distance",
            "Jensen–Shannon, base 2, 10° cells; few residues are never at 0",
            f"{value:.2f}",
            theirs,
            verdict,
        )
    if "pairwise_tm" in m.overall:
        value, real = m.overall["pairwise_tm"], reference.get("pairwise_tm", {})
        theirs = (
            f"{real['mean']:.2f} <small>{real['chains']} random chains of 60 to 128 residues</small>" if real else "–"
        )
        alike = value >= 0.5
        verdict = '<span class="out">one fold</span>' if alike else '<span class="ok">diverse</span>'
        if alike:
            notes.append(
                f"<b>Diversity</b>: a mean pairwise TM-score of {value:.2f} says that the samples share one fold."
            )
        row("Pairwise TM-score", "mean over pairs; above 0.5 = the same fold", f"{value:.2f}", theirs, verdict)
    if "novelty_tm" in m.overall:
        row("TM-score to the nearest training chain", "mean; lower = more novel", f"{m.overall['novelty_tm']:.2f}", "–")
    if "sequence_nll" in m.overall:
        natives = load_natives()
        for label, what, mine, theirs, style in (
            (
                "Negative log-likelihood of sequences",
                "ProteinMPNN, nats a residue; best sequence of each; lower = clearer",
                m.overall["sequence_nll"],
                natives["nll"]["mean"],
                ".3f",
            ),
            ("Alanine", "share of the designed residues", m.overall["alanine"], natives["composition"]["A"], "%"),
        ):
            row(
                label,
                what,
                _number(mine, style),
                f"{_number(theirs, style)} <small>designed for {natives['chains']} real chains</small>",
            )
    follows = int((np.abs(m.table["rg_ratio"] - 1) <= 0.2).sum()) if "rg_ratio" in m.table else 0
    if reference and follows < 0.8 * len(m.names):
        notes.append(f"<b>Size</b>: {follows} of {len(m.names)} radii of gyration lie within 20 % of the fit.")
    return "".join(rows), notes


def _about(command: str, info: Mapping[str, Any], timings: Mapping[str, float], m: Measured) -> str:
    facts = [(k, str(v)) for k, v in info.items()] + [(f"time for {k}", _seconds(v)) for k, v in timings.items()]
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    again = f"<p>Same command, versions and machine: same backbones.</p>{_code(command)}" if command else ""
    first = escape(m.names[0])
    return (
        f'<div class="pair"><section class="card"><h2>How these were made</h2>{again}<dl>{listed}</dl></section>'
        '<section class="card"><h2>Open the structures</h2><p>Each backbone is a PDB file with N, CA, C and O atoms '
        "(glycine throughout unless sequences were designed: the model makes backbones).</p>"
        f"<pre>pymol {first}.pdb     # then: as cartoon; dss; spectrum\nchimerax {first}.pdb</pre>"
        "<p>In Python:</p><pre>import biotite.structure.io as io\natoms = "
        f"io.load_structure(&quot;{first}.pdb&quot;)</pre>"
        "<p class='sub'>Next step in a design: a sequence for each backbone (ProteinMPNN) and a prediction of its "
        "fold; "
        "whether the two agree is what decides if a backbone can be made.</p></section></div>"
    )


def _code(text: str) -> str:
    """A command with a button that copies it."""
    return (
        f'<div class="code"><pre>{escape(text)}</pre><button type="button" class="copy" aria-label="Copy the command">'
        "Copy</button></div>"
    )


def _chains_json(m: Measured) -> str:
    letters = secondary_structure.letters(m.states, m.mask)
    numbers = m.numbers
    chains = []
    for i in range(min(len(m.names), SHOWN)):
        helix, strand = float(m.table["helix"][i]), float(m.table["strand"][i])
        chains.append(
            {
                "name": m.names[i],
                "note": f"{_percent(helix)} helix, {_percent(strand)} strand",
                "states": letters[i],
                "numbers": numbers[i],
                "path": encode_path(m.path(i)),
            }
        )
    named = dict(zip(("coil", "helix", "strand"), ribbon.COLORS.values(), strict=True))
    page = json.dumps({"chains": chains, "colors": named, "rainbow": ribbon.RAINBOW}, separators=(",", ":"))
    return page.replace("<", "\\u003c")  # a name can't close the script element


_UNITS = np.array([100, 100, 100, 30000, 30000, 30000, 1000, 1000, 1])


def encode_path(path: NDArray[np.float64]) -> str:
    """A ribbon's path as base64 of little-endian 16-bit integers: 0.01 A, 1/30000, 0.001 A, residue."""
    whole = np.rint(path * _UNITS)
    if np.abs(whole).max(initial=0) > 32767:
        raise ValueError("a backbone extends over more than 327 angstrom from its centre; the viewer can't hold it")
    return base64.b64encode(whole.astype("<i2").tobytes()).decode()


def _percent(x: float) -> str:
    return f"{100 * x:.0f} %"


def _number(x: float, style: str) -> str:
    if style == "%":
        return f"{100 * x:.1f} %"
    return format(x, style).replace("-", "\u2212")


def _seconds(x: float) -> str:
    return f"{x:.1f} s" if x < 60 else f"{int(x // 60)} min {x % 60:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: make reference statistics; it lives in :mod:`manifoldflow.tasks.proteins.reference` now."""
    return reference_main(arguments)


if __name__ == "__main__":
    sys.exit(main())
