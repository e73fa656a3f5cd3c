"""Statistics of real backbones that samples are compared with: a small JSON file, since the chains are not shipped."""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifoldflow.checkpoint import data_path
from manifoldflow.files import write_text
from manifoldflow.tasks.proteins import metrics, similarity
from manifoldflow.tasks.proteins.geometry import BREAK_OFFSET

BINS = 72  # of phi and psi: 5 degrees
CONTENT_BINS = 20
CA_CA_RANGE = (3.3, 4.3, 100)  # angstrom, angstrom, bins
FAVOURED = 0.98  # probability inside the region called favoured
FILE = "reference/protein_backbones.json"

Reference = dict[str, Any]


def load_reference(path: str | Path | None = None) -> Reference:
    """Read reference statistics; default: those of the training set, which ship with the library."""
    path = data_path(FILE) if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; make it with python -m manifoldflow.tasks.proteins.reference --reference CHAINS"
        )
    try:
        reference = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    missing = {"chains", "ramachandran", "ca_ca", "rg", "content", "per_chain"} - set(reference)
    if missing:
        raise ValueError(f"{path}: not a file of reference statistics, {sorted(missing)[0]!r} is missing")
    return reference


def reference_statistics(
    coords_list: Sequence[Tensor | NDArray[Any]],
    residue_index: Sequence[Tensor | NDArray[Any]] | None = None,
    *,
    source: str = "",
    tm_chains: int = 40,
) -> Reference:
    """Statistics of a set of chains as a JSON-able dict.

    Args:
        coords_list: (N_i, 4, 3) angstrom per chain, atoms N, CA, C, O.
        residue_index: (N_i,) per chain; steps other than 1 are chain breaks.
        source: where the chains come from, for the reader of the file.
        tm_chains: number of chains of 60 to 128 residues whose mean pairwise TM-score is measured (0 = none).

    Returns:
        ``ramachandran`` (counts on a 72 x 72 grid, rows phi, columns psi), ``ca_ca`` (histogram), ``rg`` (fit a N^b,
        quantiles of R / (a N^b) in ranges of length), ``content`` (histogram of chains over helix and strand),
        ``per_chain`` (mean, standard deviation and 5, 50, 95 % quantiles of every column of `chain_table`), and
        ``small_samples`` (Jensen-Shannon distance of random groups of chains to the whole).
    """
    if len(coords_list) < 2:
        raise ValueError(f"reference statistics need at least 2 chains, got {len(coords_list)}")
    batches = list(_batches(coords_list, residue_index))
    counts = np.sum([_rama_counts(*batch) for batch in batches], axis=0)
    lengths = torch.cat([mask.sum(1) for _, mask, _ in batches])
    rg = torch.cat([metrics.radius_of_gyration(coords, mask) for coords, mask, _ in batches])
    partial: Reference = {
        "ramachandran": {"bins": BINS, "counts": counts.flatten().astype(int).tolist()},
        "rg": {"trend": list(metrics.rg_trend(lengths, rg))},
    }
    tables = [chain_table(*batch, reference=partial) for batch in batches]
    table = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
    edges = np.linspace(CA_CA_RANGE[0], CA_CA_RANGE[1], CA_CA_RANGE[2] + 1)
    steps = np.concatenate([ca_steps(*batch) for batch in batches])
    content, _, _ = np.histogram2d(table["helix"], table["strand"], CONTENT_BINS, [[0, 1], [0, 1]])
    return {
        "source": source,
        "chains": len(coords_list),
        "residues": int(table["length"].sum()),
        "lengths": [int(table["length"].min()), int(table["length"].max())],
        "ramachandran": partial["ramachandran"],
        "ca_ca": {
            "range": list(CA_CA_RANGE),
            "counts": np.histogram(steps, edges)[0].tolist(),
            "outside": int(((steps < edges[0]) | (steps > edges[-1])).sum()),
            "mean": _rounded(steps.mean()),
            "std": _rounded(steps.std()),
        },
        "rg": {"trend": [_rounded(x) for x in partial["rg"]["trend"]], "spread": _spread(table)},
        "content": {"bins": CONTENT_BINS, "counts": content.astype(int).tolist()},
        "per_chain": {name: _summary(column) for name, column in table.items()},
        "small_samples": _small_samples(batches, counts),
        "pairwise_tm": _diversity(coords_list, tm_chains),
    }


def chain_table(
    coords: Tensor, mask: Tensor, residue_index: Tensor | None = None, reference: Reference | None = None
) -> dict[str, NDArray[np.float64]]:
    """One row per chain: `metrics.per_chain` and means of the distances and angles that a sampler has to learn.

    Lengths are angstrom, angles degrees, the rest fractions. With ``reference``: ``rg_ratio`` = R / (a N^b) and
    ``rama_favoured``, the fraction of residues in the region that holds 98 % of the reference's residues.
    """
    table = metrics.per_chain(coords, mask, residue_index)
    columns = {name: value.double().cpu().numpy() for name, value in table.items()}
    distance, link = metrics.ca_distances(coords, mask, residue_index)
    columns["ca_ca"] = _row_mean(distance, link)
    columns["c_n"] = _row_mean(*metrics.bond_lengths(coords, mask, residue_index)["c_n"])
    for name, (value, valid) in metrics.bond_angles(coords, mask, residue_index).items():
        columns[name] = _row_mean(torch.rad2deg(value), valid)
    if reference is not None:
        a, b = reference["rg"]["trend"]
        columns["rg_ratio"] = columns["rg"] / (a * columns["length"] ** b)
        counts = rama_grid(reference)
        density = smooth_density(counts)
        favoured = density >= level_of_mass(density, FAVOURED, counts)
        row, column, valid_angles = _rama_cells(coords, mask, residue_index)
        columns["rama_favoured"] = _row_mean(torch.from_numpy(favoured[row, column]), valid_angles)
    return columns


def rama_grid(reference: Reference) -> NDArray[np.float64]:
    """Counts of (phi, psi), (72, 72), rows phi, columns psi, both from -180 degrees."""
    bins = int(reference["ramachandran"]["bins"])
    return np.asarray(reference["ramachandran"]["counts"], np.float64).reshape(bins, bins)


def metric_reference(reference: Reference, bins: int = 36) -> metrics.Reference:
    """The same statistics as `metrics.Reference` (without traces), for `metrics.summarize`."""
    grid = rama_grid(reference)
    factor = len(grid) // bins
    coarse = grid.reshape(bins, factor, bins, factor).sum((1, 3))
    a, b = reference["rg"]["trend"]
    return metrics.Reference(torch.from_numpy(coarse / coarse.sum()), (float(a), float(b)), [])


def smooth_density(counts: NDArray[np.float64], width: float = 5.0) -> NDArray[np.float64]:
    """Periodic Gaussian smoothing of a grid of angles, standard deviation ``width`` in degrees; sums to 1."""
    bins = len(counts)
    offset = np.minimum(np.arange(bins), bins - np.arange(bins)) * (360 / bins)
    kernel = np.exp(-((offset / width) ** 2) / 2)
    wave = np.fft.fft(kernel / kernel.sum())
    smooth = np.fft.ifft2(np.fft.fft2(counts) * wave[:, None] * wave[None]).real
    return np.maximum(smooth, 0) / smooth.sum()


def level_of_mass(density: NDArray[np.float64], mass: float, weight: NDArray[np.float64] | None = None) -> float:
    """The density above which the cells hold at least ``mass`` of the probability (highest density region).

    Args:
        density: of each cell. mass: in (0, 1).
        weight: what is held, per cell, such as the counts that a smooth density was made from; default: the density.
    """
    flat = density.ravel()
    order = np.argsort(-flat, kind="stable")
    held = np.cumsum((density if weight is None else weight).ravel()[order])
    return float(flat[order[min(int(np.searchsorted(held, mass * held[-1])), flat.size - 1)]])


def ca_steps(coords: Tensor, mask: Tensor, residue_index: Tensor | None = None) -> NDArray[np.float64]:
    """CA-CA distances of all bonded neighbours in angstrom, (n,)."""
    distance, link = metrics.ca_distances(coords, mask, residue_index)
    return distance[link].double().cpu().numpy()


def save_reference(reference: Mapping[str, Any], out: str | Path) -> Path:
    """Write statistics as JSON, atomically."""
    return write_text(out, json.dumps(reference, separators=(",", ":")) + "\n")


def _batches(
    chains: Sequence[Any], indices: Sequence[Any] | None, size: int = 64
) -> list[tuple[Tensor, Tensor, Tensor]]:
    pad = torch.nn.utils.rnn.pad_sequence
    order = sorted(range(len(chains)), key=lambda i: len(chains[i]))
    batches = []
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        coords = [torch.as_tensor(chains[i]).float() for i in rows]
        if indices is None:
            index = [torch.arange(len(c)) for c in coords]
        else:
            index = [torch.as_tensor(indices[i]).long() for i in rows]
        real = [torch.ones(len(c), dtype=torch.bool) for c in coords]
        batches.append((pad(coords, batch_first=True), pad(real, batch_first=True), pad(index, batch_first=True)))
    return batches


def _rama_cells(
    coords: Tensor, mask: Tensor, residue_index: Tensor | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
    angles = metrics.torsions(coords, mask, residue_index)
    (phi, has_phi), (psi, has_psi) = angles["phi"], angles["psi"]
    row, column = (((a + math.pi) * (BINS / (2 * math.pi))).long().remainder(BINS).cpu().numpy() for a in (phi, psi))
    return row, column, (has_phi & has_psi).cpu()


def _rama_counts(coords: Tensor, mask: Tensor, residue_index: Tensor | None) -> NDArray[np.float64]:
    row, column, valid = _rama_cells(coords, mask, residue_index)
    cells = (row * BINS + column)[valid.numpy()]
    return np.bincount(cells, minlength=BINS * BINS).reshape(BINS, BINS).astype(np.float64)


def _row_mean(value: Tensor, valid: Tensor) -> NDArray[np.float64]:
    """Mean over the valid entries of each row, NaN where there is none."""
    total = value.double().where(valid, 0.0).sum(1) / valid.sum(1).double()
    return total.cpu().numpy()


def _summary(column: NDArray[np.float64]) -> dict[str, float]:
    known = column[np.isfinite(column)]
    low, middle, high = np.quantile(known, [0.05, 0.5, 0.95])
    values = {"mean": known.mean(), "std": known.std(), "q05": low, "q50": middle, "q95": high}
    return {name: _rounded(value) for name, value in values.items()}


def _spread(table: Mapping[str, NDArray[np.float64]]) -> list[list[float]]:
    """Rows [shortest, longest, 5 %, 50 %, 95 % of R / (a N^b)] over ten ranges of length with equally many chains."""
    order = np.argsort(table["length"], kind="stable")
    rows = []
    for part in np.array_split(order, min(10, max(1, len(order) // 20))):
        quantiles = np.quantile(table["rg_ratio"][part], [0.05, 0.5, 0.95])
        rows.append([_rounded(x) for x in (*table["length"][part][[0, -1]], *quantiles)])
    return rows


def _small_samples(batches: Sequence[tuple[Tensor, Tensor, Tensor]], counts: NDArray[np.float64]) -> dict[str, Any]:
    """Jensen-Shannon distance to the whole set of random groups of 8, 32 and 128 real chains: what is perfect there."""
    chains = [_rama_counts(c[i : i + 1], m[i : i + 1], r[i : i + 1]) for c, m, r in batches for i in range(len(c))]
    coarse = np.stack([c.reshape(36, 2, 36, 2).sum((1, 3)) for c in chains])
    whole = torch.from_numpy(counts.reshape(36, 2, 36, 2).sum((1, 3)))
    rng = np.random.default_rng(0)
    result = {}
    for size in (8, 32, 128):
        if size > len(chains) // 2:
            continue
        groups = [coarse[rng.choice(len(chains), size, replace=False)].sum(0) for _ in range(200)]
        values = np.array([float(metrics.js_distance(torch.from_numpy(g), whole)) for g in groups])
        residues, mean, high = np.mean([g.sum() for g in groups]), values.mean(), np.quantile(values, 0.95)
        result[str(size)] = {"residues": _rounded(residues), "mean": _rounded(mean), "q95": _rounded(high)}
    return result


def _diversity(chains: Sequence[Any], count: int) -> dict[str, float]:
    """Pairwise TM-scores of chains drawn from those of 60 to 128 residues."""
    fitting = [torch.as_tensor(c).float()[:, 1] for c in chains if 60 <= len(c) <= 128]
    if count < 2 or len(fitting) < 2:
        return {}
    drawn = np.random.default_rng(0).choice(len(fitting), min(count, len(fitting)), replace=False)
    scores = similarity.pairwise_tm([fitting[i] for i in drawn])
    upper = scores[tuple(torch.triu_indices(len(scores), len(scores), offset=1))].numpy()
    return {"chains": len(drawn), "mean": _rounded(upper.mean()), "q95": _rounded(np.quantile(upper, 0.95))}


def _rounded(x: Any) -> float:
    return float(f"{float(x):.5g}")


def read_chains(paths: Sequence[Path], low: int, high: int) -> tuple[list[Any], list[Any]]:
    """Chains of ``low`` to ``high`` residues in data set folders and npz files: coordinates and residue indices."""
    from manifoldflow.tasks.proteins.data import ProteinDataset, read_npz

    coords, indices = [], []
    for path in paths:
        if path.is_dir():
            dataset = ProteinDataset(path, min_length=low, max_length=high, crop=False)
            items = [dataset[i] for i in range(len(dataset))]
            coords += [item["coords"] for item in items]
            indices += [item["residue_index"] for item in items]
            continue
        for chain in read_npz(path):
            if low <= len(chain) <= high:
                coords.append(torch.from_numpy(chain.coords))
                jumps = np.cumsum(chain.break_after.astype(np.int64))
                indices.append(np.arange(len(chain)) + BREAK_OFFSET * np.concatenate([[0], jumps[:-1]]))
    return coords, indices


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: make reference statistics."""
    parser = argparse.ArgumentParser(
        prog="python -m manifoldflow.tasks.proteins.reference", description="Statistics of real chains for reports."
    )
    parser.add_argument(
        "--reference", nargs="+", type=Path, required=True, help="prepared data set folders or npz files"
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--min-length", type=int, default=50)
    parser.add_argument("--max-length", type=int, default=256)
    given = parser.parse_args(arguments)
    try:
        coords, indices = read_chains(given.reference, given.min_length, given.max_length)
        source = ", ".join(path.name for path in given.reference)
        out = save_reference(reference_statistics(coords, indices, source=source), given.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: statistics of {len(coords)} chains, {out.stat().st_size / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
