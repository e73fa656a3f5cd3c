"""Structure prediction from prototypes: known structures with their elements exchanged, refined by the flow, and ranked.

``python -m manifoldflow.tasks.crystals.refining --checkpoint crystals_mp --reference mp_3dsc_20.csv.gz --part test`` makes the
table: substitution alone, the flow started from it, and both ranked by the distance of the elements, by the flow's doubt, or by
both.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import manifoldflow as mf
from manifoldflow.files import write_text
from manifoldflow.tasks.common.runs import load_model
from manifoldflow.tasks.common.tables import show
from manifoldflow.tasks.crystals.baselines import predict, substitute
from manifoldflow.tasks.crystals.evaluate import judge, prediction_table
from manifoldflow.tasks.crystals.flow import BUILDER, annealed
from manifoldflow.tasks.crystals.matching import best_of
from manifoldflow.tasks.crystals.picking import doubt
from manifoldflow.tasks.crystals.sampling import Wanted, batches_of, draw
from manifoldflow.tasks.crystals.splits import split_by_formula
from manifoldflow.tasks.crystals.store import CrystalDataset
from manifoldflow.tasks.crystals.structure import Crystal, collate

STEPS = 20
"""Of sampling from a guess, which is near already."""
WEIGHT = 0.5
"""Of the logarithm of the doubt beside the distance of the elements, see :func:`ranked`; chosen on a validation part."""


def refined(flow: mf.Flow, guesses: Sequence[Crystal], *, steps: int = STEPS, seed: int = 0) -> list[Crystal]:
    """Every guess after the flow, atoms in its order; a guess whose cell is lost on the way comes back as it was.

    Args:
        flow: trained to start from guesses (``train crystals --prototypes``).
        guesses: substituted prototypes, see :func:`manifoldflow.tasks.crystals.baselines.substitute`.
        steps: of sampling.
        seed: of the blur before it.
    """
    order = sorted(range(len(guesses)), key=lambda i: len(guesses[i]))
    wanted = [Wanted(len(g), species=tuple(g.species.tolist()), guess=g) for g in (guesses[i].reduced() for i in order)]
    made: list[Crystal] = list(guesses)
    for number, rows in enumerate(batches_of(wanted)):
        some = draw(flow, [wanted[i] for i in rows], steps=steps, seed=seed, number=number, from_prototypes=True)
        for i, crystal in zip(rows, some, strict=True):
            before = guesses[order[i]]
            try:
                after = crystal.reduced()
            except ValueError:
                continue
            if len(after) == len(before) and np.isfinite(after.cell).all():
                made[order[i]] = Crystal(after.species, after.frac, after.cell, before.name, before.labels)
    return made


def doubts(flow: mf.Flow, crystals: Sequence[Crystal], *, draws: int = 4, seed: int = 0) -> NDArray[np.float64]:
    """:func:`manifoldflow.tasks.crystals.picking.doubt` of many crystals of all sizes."""
    order = sorted(range(len(crystals)), key=lambda i: len(crystals[i]))
    result = np.full(len(crystals), np.inf)
    for number, part in enumerate(batches_of([Wanted(len(crystals[i])) for i in order], most=256)):
        rows = [order[k] for k in part]
        value = doubt(flow, collate([crystals[i] for i in rows]), draws=draws, seed=seed + number)
        result[rows] = value.nan_to_num(torch.inf).numpy()
    return result


def ranked(
    candidates: Sequence[Sequence[Crystal]],
    doubted: Sequence[Sequence[float]],
    weight: float = WEIGHT,
) -> list[list[Crystal]]:
    """Candidates of each cell, best first: the least distance of elements plus ``weight`` times the logarithm of the doubt.

    Args:
        candidates: with their ``distance`` in the labels, as :func:`manifoldflow.tasks.crystals.baselines.substitute` makes them.
        doubted: the doubt of each.
        weight: 0 ranks by distance, infinity by doubt.
    """
    result = []
    for some, values in zip(candidates, doubted, strict=True):
        log = np.log(np.maximum(np.asarray(values, float), 1e-9))
        distance = np.array([float(c.labels["distance"]) for c in some])
        score = log if np.isinf(weight) else distance + weight * log
        result.append([some[i] for i in np.argsort(score, kind="stable")])
    return result


def main(words: Sequence[str] | None = None) -> None:
    """Make the table of starts from prototypes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--reference", required=True, help="set of structures; known are those of its train part")
    parser.add_argument("--part", default="test", choices=["test", "val"])
    parser.add_argument("--most", type=int, default=0, help="structures to predict, 0 for the whole part")
    parser.add_argument("--prototypes", type=int, default=10, help="prototypes of each")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--slope", type=float, help="of the annealed velocity; the checkpoint's own if absent")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, WEIGHT, float("inf")], help="of the doubt")
    parser.add_argument("--num", type=int, default=5, help="candidates that count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="crystals_prototypes.csv", help="a row for each candidate")
    given = parser.parse_args(words)
    dataset = CrystalDataset(given.reference)
    split = split_by_formula(dataset.formulas, 0.1, 0.2)
    known = [dataset[i] for i in split.train.tolist()]
    rows = getattr(split, given.part)
    if given.most:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: given.most]]
    truth = [dataset[int(i)] for i in rows]
    cells = [c.species.tolist() for c in truth]
    flow, _ = load_model(given.checkpoint, BUILDER, "crystal flow")
    if given.slope is not None:
        annealed(flow, given.slope)
    guesses = substitute(cells, known, given.prototypes)
    flat = [g for some in guesses for g in some]
    after = _split(refined(flow, flat, steps=given.steps, seed=given.seed), guesses)
    sure = {
        "substitution": _split(doubts(flow, flat).tolist(), guesses),
        "flow from prototype": _split(doubts(flow, [c for some in after for c in some]).tolist(), guesses),
    }
    judged = []
    lines = ["truth,rank,method,atoms,distance,doubt,published,strict"]
    for name, some in (("substitution", guesses), ("flow from prototype", after)):
        every = judge(name, some, truth, given.prototypes, workers=1)
        for i, group in enumerate(some):
            for k, crystal in enumerate(group):
                values = ",".join(f"{v:.5f}" for v in every.rms[i, k])
                distance = crystal.labels["distance"]
                lines.append(f"{i},{k},{name},{len(crystal)},{distance:.4f},{sure[name][i][k]:.5f},{values}")
        for weight in given.weights:
            place = ranked(
                [[Crystal(c.species, c.frac, c.cell, str(k), c.labels) for k, c in enumerate(g)] for g in some],
                sure[name],
                weight,
            )
            rms = np.full_like(every.rms[:, : given.num], np.nan)
            for i, group in enumerate(place):
                for k, crystal in enumerate(group[: given.num]):
                    rms[i, k] = every.rms[i, int(crystal.name)]
            word = {0.0: "by distance", float("inf"): "by doubt"}.get(weight, f"by distance + {weight:g} log doubt")
            pooled = np.stack([best_of(rms[:, :, m], given.num) for m in range(rms.shape[2])], -1)
            judged.append(type(every)(f"{name}, {word}", rms, pooled, every.timed_out, every.valid, every.missing))
    judged.append(
        judge("random atoms", predict("random", cells, given.num, seed=given.seed), truth, given.num, workers=1)
    )
    write_text(Path(given.out), "\n".join(lines) + "\n")
    columns, table, notes = prediction_table(judged)
    show(columns, table, f"{given.reference}, {given.part}: {len(truth)} structures", notes)


def _split(flat: Sequence[Any], like: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """A list cut into lists as long as others."""
    values = iter(flat)
    return [[next(values) for _ in some] for some in like]


if __name__ == "__main__":
    main()
