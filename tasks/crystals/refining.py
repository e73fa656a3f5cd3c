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
from manifoldflow.tasks.crystals.baselines import Substitution, predict, substitute
from manifoldflow.tasks.crystals.consensus import distances, representatives
from manifoldflow.tasks.crystals.evaluate import Judged, judge, prediction_table
from manifoldflow.tasks.crystals.flow import BUILDER, annealed
from manifoldflow.tasks.crystals.picking import doubt
from manifoldflow.tasks.crystals.predicting import candidates
from manifoldflow.tasks.crystals.sampling import Wanted, batches_of, draw
from manifoldflow.tasks.crystals.splits import split_by_formula
from manifoldflow.tasks.crystals.store import CrystalDataset
from manifoldflow.tasks.crystals.structure import Crystal, collate

STEPS = 20
"""Of sampling from a guess, which is near already."""
SHARE, REACH = 0.9, 3.0
"""Of :func:`combined`: belief in prototypes, and how it falls with the distance of the elements; chosen on a validation part."""
WEIGHT = 0.5
"""Of the logarithm of the doubt beside the distance of the elements, see :func:`ranked`; chosen on a validation part."""


def refined(
    flow: mf.Flow, guesses: Sequence[Crystal], *, steps: int = STEPS, blur: float = 0.0, seed: int = 0
) -> list[Crystal]:
    """Every guess after the flow, atoms in its order; a guess whose cell is lost on the way comes back as it was.

    Args:
        flow: trained to start from guesses (``train crystals --prototypes``).
        guesses: substituted prototypes, see :func:`manifoldflow.tasks.crystals.baselines.substitute`.
        steps: of sampling.
        blur: of the guesses before it, as in :func:`manifoldflow.tasks.crystals.sampling.draw`; without it the RMSE is least.
        seed: of the blur.
    """
    order = sorted(range(len(guesses)), key=lambda i: len(guesses[i]))
    wanted = [Wanted(len(g), species=tuple(g.species.tolist()), guess=g) for g in (guesses[i].reduced() for i in order)]
    made: list[Crystal] = list(guesses)
    for number, rows in enumerate(batches_of(wanted)):
        some = draw(
            flow, [wanted[i] for i in rows], steps=steps, seed=seed, number=number, from_prototypes=True, blur=blur
        )
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


def combined(
    guesses: Sequence[Crystal],
    draws: Sequence[Crystal],
    num: int = 5,
    *,
    share: float = SHARE,
    reach: float = REACH,
) -> list[Crystal]:
    r"""Guesses from prototypes and draws from noise weighed together: the ``num`` of least expected error.

    The truth is believed to be like guess k with probability :math:`p\, e^{-d_k / r} / \sum_j e^{-d_j / r}`, d the distance of
    the elements, and like each of the draws with an equal part of :math:`1 - p`; which to put forward follows as in
    :func:`manifoldflow.tasks.crystals.consensus.representatives`. Guesses with another number of atoms come last.

    Args:
        guesses: with their ``distance`` in the labels; of the flow, or as they were.
        draws: of the flow from noise, of the same composition.
        num: how many, at most.
        share: p; 1 where there are no draws, 0 where there are no guesses.
        reach: r.
    """
    size = len(draws[0]) if draws else (len(guesses[0]) if guesses else 0)
    fit = [c for c in guesses if len(c) == size]
    both = [*fit, *draws]
    if not both:
        return list(guesses[:num])
    part = (share if draws else 1.0) if fit else 0.0
    distance = torch.tensor([float(c.labels["distance"]) for c in fit], dtype=torch.float64)
    weights = torch.cat(
        [part * torch.softmax(-distance / reach, 0), torch.full((len(draws),), (1 - part) / max(len(draws), 1))]
    )
    table = distances(collate(both), len(both))
    best = representatives(table, min(num, len(both)), weights.unsqueeze(0))[0].tolist()
    return [*(both[k] for k in best), *(c for c in guesses if len(c) != size)][:num]


def main(words: Sequence[str] | None = None) -> None:
    """Make the table of starts from prototypes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--reference", required=True, help="set of structures; known are those of its train part")
    parser.add_argument("--part", default="test", choices=["test", "val"])
    parser.add_argument("--most", type=int, default=0, help="structures to predict, 0 for the whole part")
    parser.add_argument("--prototypes", type=int, default=5, help="prototypes of each")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--slope", type=float, help="of the annealed velocity; the checkpoint's own if absent")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, WEIGHT, float("inf")], help="of the doubt")
    parser.add_argument("--draws", type=int, default=2, help="of the noise, for the doubt")
    parser.add_argument(
        "--noise", type=int, default=0, help="draws from noise of each; rows with them, too, if there are any"
    )
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
    own = candidates(flow, cells, given.noise, seed=given.seed) if given.noise else [[] for _ in cells]
    plain = Substitution(known, distinct=False)
    held = [np.array([c.formula == t.formula for c in known]) for t in truth]
    same = [plain.candidates(cell, given.num, is_own) for cell, is_own in zip(cells, held, strict=True)]
    pools: dict[str, Sequence[Sequence[Crystal]]] = {
        "substitution": guesses,
        "flow from prototype": after,
        "flow from noise": own,
    }
    most = max(given.num, given.prototypes, given.noise)
    found = {name: judge(name, some, truth, most, workers=1) for name, some in pools.items()}
    rows_of: dict[str, NDArray[np.float64]] = {
        "substitution, nearest templates": judge("plain", same, truth, given.num, workers=1).rms
    }
    lines = ["truth,rank,method,atoms,distance,doubt,published,strict"]
    for name, some in pools.items():
        rms = found[name].rms
        sure = _split(doubts(flow, [c for g in some for c in g], draws=given.draws).tolist(), some)
        for i, group in enumerate(some):
            for k, crystal in enumerate(group):
                values = ",".join(f"{v:.5f}" for v in rms[i, k])
                distance = crystal.labels.get("distance", float("nan"))
                lines.append(f"{i},{k},{name},{len(crystal)},{distance:.4f},{sure[i][k]:.5f},{values}")
        if name == "flow from noise":
            rows_of[name] = rms
            continue
        named = [[Crystal(c.species, c.frac, c.cell, str(k), c.labels) for k, c in enumerate(g)] for g in some]
        for weight in given.weights:
            word = {0.0: "by distance", float("inf"): "by doubt"}.get(weight, f"by distance + {weight:g} log doubt")
            chosen = np.full_like(rms, np.nan)
            for i, group in enumerate(ranked(named, sure, weight)):
                chosen[i, : len(group)] = rms[i, [int(c.name) for c in group]]
            rows_of[f"{name}, {word}"] = chosen
    if given.noise:
        for name in ("substitution", "flow from prototype"):
            rms = np.full((len(truth), given.num, found[name].rms.shape[2]), np.nan)
            for i, (starts, draws) in enumerate(zip(pools[name], own, strict=True)):
                place = {id(c): found[name].rms[i, k] for k, c in enumerate(starts)}
                place |= {id(c): found["flow from noise"].rms[i, k] for k, c in enumerate(draws)}
                for k, crystal in enumerate(combined(starts, draws, given.num)):
                    rms[i, k] = place[id(crystal)]
            rows_of[f"{name} and {given.noise} draws from noise"] = rms
    judged = []
    for name, rms in rows_of.items():
        judged.append(Judged(name, rms[:, : given.num], rms[:, 0]))
    judged.append(
        judge("random atoms", predict("random", cells, given.num, seed=given.seed), truth, given.num, workers=1)
    )
    write_text(Path(given.out), "\n".join(lines) + "\n")
    columns, table, notes = prediction_table(judged)  # without METRe, which would need pairs across truths
    show(columns[:-1], [row[:-1] for row in table], f"{given.reference}, {given.part}: {len(truth)} structures", notes)


def _split(flat: Sequence[Any], like: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """A list cut into lists as long as others."""
    values = iter(flat)
    return [[next(values) for _ in some] for some in like]


if __name__ == "__main__":
    main()
