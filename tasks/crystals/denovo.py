"""De novo generation judged on one set of samples: contacts, validities, distances, shifts and SUN under CHGNet.

    python -m manifoldflow.tasks.crystals.denovo --checkpoint crystals_mp --data mp_3dsc_20.csv.gz --num 1000 --relax 200

The agreement of CHGNet's energies above the hull with the labels of mp_40 is printed first: SUN stands and falls with it.
Results go into a JSON file as they come; a run that was stopped goes on with what is missing.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import manifoldflow as mf
from manifoldflow.tasks.common.tables import Kept, share, show
from manifoldflow.tasks.crystals.baselines import relatives
from manifoldflow.tasks.crystals.energies import STABLE, SURROGATE, Agreement, agreement, embedded_hull, read_energies
from manifoldflow.tasks.crystals.evaluate import judge_set, set_rows
from manifoldflow.tasks.crystals.metrics import first_of_kind, geometry, known_of
from manifoldflow.tasks.crystals.refining import refined
from manifoldflow.tasks.crystals.relax import Relaxer
from manifoldflow.tasks.crystals.sampling import JUMPS, Wanted, batches_of, draw
from manifoldflow.tasks.crystals.splits import split_by_formula
from manifoldflow.tasks.crystals.store import CrystalDataset
from manifoldflow.tasks.crystals.structure import Crystal, parse_formula

__all__ = ["kept_apart", "labels_agree", "sample_like", "sun"]


def labels_agree(labels: Any, formulas: Sequence[str]) -> tuple[Agreement, Agreement | None]:
    """CHGNet's energies above the hull against the labels of mp_40: of all, and of those that lie above known competitors.

    A structure on the hull of the few that are known says nothing about the labels; those above it by more than 5 meV do.

    Args:
        labels: energies above the hull by DFT, eV per atom, of the rows of mp_40.
        formulas: of the same rows.
    """
    hull = embedded_hull()
    count = Counter(formulas)  # the table has no names, so polymorphs cannot be told apart
    energy = {row.formula: row.energy for row in read_energies() if row.part == "mp_40" and count[row.formula] == 1}
    above = np.array([energy.get(f, np.nan) - hull.at(parse_formula(f)) for f in formulas])
    is_apart = above > 0.005
    some = agreement(above[is_apart], np.asarray(labels, float)[is_apart]) if is_apart.sum() > 2 else None
    return agreement(above, labels), some


def sample_like(
    flow: Any, sizes: Sequence[int], num: int, steps: int, seed: int, progress: Any = None, jumps: Any = None
) -> list[Crystal]:
    """Crystals whose numbers of atoms are drawn from those of the training set; ``jumps`` as for
    :func:`manifoldflow.tasks.crystals.sampling.draw`."""
    chosen = np.sort(np.random.default_rng(seed).choice(np.asarray(sizes), num))
    wanted = [Wanted(int(n)) for n in chosen]
    made: list[Crystal] = []
    for number, rows in enumerate(batches_of(wanted)):
        made += draw(flow, [wanted[i] for i in rows], steps=steps, seed=seed, number=number, jumps=jumps)
        if progress is not None:
            progress(len(made))
    return made


def kept_apart(
    drawn: Callable[[int, int], list[Crystal]], num: int, contact: float, seed: int = 0, rounds: int = 8
) -> tuple[list[Crystal], int]:
    """Crystals without close contacts, drawn again until there are so many, and how many were drawn.

    Args:
        drawn: makes crystals from their number and a seed.
        num: wanted.
        contact: least closest contact over the sum of the radii; 0 keeps everything.
        seed: of the first round; others follow.
        rounds: of drawing, at most: fewer crystals come back where that was not enough.
    """
    made: list[Crystal] = []
    tried = 0
    for k in range(rounds):
        some = drawn(num - len(made) if contact <= 0 else num, seed + 1000 * k)
        tried += len(some)
        good = geometry(some).contact >= contact
        made += [c for c, is_good in zip(some, good, strict=True) if is_good]
        if len(made) >= num:
            break
    return made[:num], tried


def sun(above: Any, is_unique: Any, is_novel: Any) -> dict[str, int]:
    """Counts of stable, of unique and novel, and of all three; unknown energies (NaN) are not stable.

    Args:
        above: energies above the hull, eV per atom.
        is_unique, is_novel: bool, of the same crystals.
    """
    stable = np.nan_to_num(np.asarray(above, float), nan=np.inf) <= STABLE
    new = np.asarray(is_unique, bool) & np.asarray(is_novel, bool)
    return {
        "crystals": len(stable),
        "with_hull": int(np.isfinite(above).sum()),
        "stable": int(stable.sum()),
        "unique_and_novel": int(new.sum()),
        "sun": int((stable & new).sum()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge a checkpoint's crystals of its own composition."""
    import argparse

    from manifoldflow.tasks.common.runs import load_model
    from manifoldflow.tasks.crystals.flow import BUILDER, annealed

    parser = argparse.ArgumentParser(prog="python -m manifoldflow.tasks.crystals.denovo", description=main.__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True, help="the set that it was trained on")
    parser.add_argument("--labels", help="mp_40.csv.gz, for the agreement of the surrogate with labels")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--relax", type=int, default=200, help="crystals to relax")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop relaxing after so many")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--anneal", type=float, help="slope of the velocity at sampling instead of the checkpoint's own"
    )
    parser.add_argument(
        "--source",
        choices=["noise", "relatives", "rule"],
        default="noise",
        help="start from noise, or from known structures with like elements; `rule`: those alone, without the flow",
    )
    parser.add_argument(
        "--contact", type=float, default=0.0, help="draw again what has a closer contact than so many sums of radii"
    )
    parser.add_argument(
        "--blur", type=float, default=0.0, help="of relatives before the flow, in turns; they differ without it, too"
    )
    parser.add_argument(
        "--temperature", type=float, default=JUMPS.temperature, help="of the species that the flow draws, from noise"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default="denovo.json")
    given = parser.parse_args(arguments)
    if given.labels:
        labelled = CrystalDataset(given.labels)
        every, some = labels_agree(labelled.label("energy_above_hull"), labelled.formulas)
        for what, a in (("all", every), ("above known competitors by 5 meV", some)):
            if a is not None:
                print(
                    f"mp_40, {what}: n = {a.crystals}, Pearson {a.pearson:.2f}, Spearman {a.spearman:.2f}, mean absolute "
                    f"difference {1000 * a.error:.0f} meV/atom, both agree on {STABLE} eV in {100 * a.stable:.0f} %"
                )
    known = CrystalDataset(given.data)
    split = split_by_formula(known.formulas, val=0.1, test=0.2)
    train = [known[i] for i in split.train.tolist() if known.lengths[i] <= 20]
    test = [known[i] for i in split.test.tolist() if known.lengths[i] <= 20]
    flow, _ = load_model(given.checkpoint, BUILDER, "crystal flow")
    if given.anneal is not None:
        flow = annealed(flow, given.anneal)
    sizes = [len(c) for c in train]

    def drawn(num: int, seed: int) -> list[Crystal]:
        if given.source == "noise":
            jumps = mf.Jumps(temperature=given.temperature)
            return sample_like(flow, sizes, num, given.steps, seed, jumps=jumps)
        crystals = relatives(train, num, seed)
        return (
            crystals
            if given.source == "rule"
            else refined(flow, crystals, steps=given.steps, blur=given.blur, seed=seed)
        )

    made, tried = kept_apart(drawn, given.num, given.contact, given.seed)
    print(f"{len(made)} of {tried} drawn are kept")
    table = Kept(given.out)
    contact = geometry(made).contact
    print(f"closest contact at least 0.7 of the radii: {share(float((contact >= 0.7).sum()), len(made))}")
    chosen = np.random.default_rng(given.seed + 1).permutation(len(made))[: given.relax].tolist()
    todo = [i for i in chosen if f"relaxed {i}" not in table]
    end = time.monotonic() + 60 * given.minutes
    with Relaxer(workers=given.workers) as relaxer:
        for k, r in relaxer.map(made[i] for i in todo if time.monotonic() < end):
            row = {"shift": r.shift, "energy": r.energy, "converged": r.converged, "fault": r.fault, "volume": r.volume}
            if r.crystal is not None:
                row["above"] = float(embedded_hull(("train",)).above([r.crystal], [r.energy])[0])
                row["above_known"] = float(embedded_hull().above([r.crystal], [r.energy])[0])
            table.add(f"relaxed {todo[k]}", row)
    rows = table.rows()
    done = [i for i in chosen if f"relaxed {i}" in rows]
    results = [rows[f"relaxed {i}"] for i in done]
    shifts = np.array([r["shift"] for r in results], float)
    sample = [made[i] for i in done]
    first = first_of_kind(sample, workers=given.workers)
    near = known_of(sample, train, workers=given.workers)
    unique, novel = first == np.arange(len(sample)), [n is None for n in near]
    lines = [
        ("relaxed", f"{len(done)} of {given.relax} asked for"),
        ("failed or stopped", share(sum(bool(r["fault"]) for r in results), len(done))),
        ("converged", share(sum(r["converged"] for r in results), len(done))),
        ("median shift, angstrom", f"{np.nanmedian(shifts):.3f}" if len(done) else "-"),
        ("shift at most 0.15 angstrom", share(float((shifts <= 0.15).sum()), len(done))),
    ]
    for key, text in (("above", "training structures"), ("above_known", "all known structures")):
        counts = sun([r.get(key, float("nan")) for r in results], unique, novel)
        lines += [
            (f"hull of the {text}: has the composition", share(counts["with_hull"], len(done))),
            (f"  within {STABLE} eV of it or below", share(counts["stable"], len(done))),
            ("  and unique and novel (SUN by surrogate)", share(counts["sun"], len(done))),
        ]
    notes = [f"energies: {SURROGATE}; the hulls are incomplete, so 'stable' is an upper bound"]
    show(("relaxed by CHGNet", "value"), lines, notes=notes)
    table.add("summary", dict(lines))
    if "set" not in table:
        table.add("set", judge_set(made, test, train, workers=given.workers))
    show(("measure", "value"), set_rows(table.rows()["set"]), f"{len(made)} crystals of {given.checkpoint}")
    print(f"kept in {Path(given.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
