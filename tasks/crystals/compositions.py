"""What a flow puts together de novo: compositions of its crystals, beside elements drawn by frequency and real crystals.

``python -m manifoldflow.tasks.crystals.compositions --data perov_5.csv.gz --checkpoints masking=runs/a beliefs=runs/b``
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from manifoldflow.tasks.common.runs import load_model
from manifoldflow.tasks.common.tables import share, show
from manifoldflow.tasks.crystals.denovo import sample_like
from manifoldflow.tasks.crystals.flow import BUILDER
from manifoldflow.tasks.crystals.metrics import composition_of, geometry, wasserstein
from manifoldflow.tasks.crystals.splits import split_by_formula
from manifoldflow.tasks.crystals.store import CrystalDataset
from manifoldflow.tasks.crystals.structure import Crystal


def by_frequency(known: Sequence[Crystal], num: int, seed: int = 0) -> list[Crystal]:
    """Known structures whose every site holds an element drawn with the frequency that it has in all of them."""
    rng = np.random.default_rng(seed)
    every = np.concatenate([c.species for c in known])
    chosen = [known[i] for i in rng.integers(len(known), size=num)]
    return [replace(c, species=rng.choice(every, len(c))) for c in chosen]


def usual_pattern(known: Sequence[Crystal]) -> tuple[int, ...]:
    """The commonest counts of a reduced formula: ``(1, 1, 3)`` among perovskites."""
    return Counter(c.anonymous for c in known).most_common(1)[0][0]


def composition_row(crystals: Sequence[Crystal], known: Sequence[Crystal], real: Sequence[Crystal]) -> list[str]:
    """Numbers of a set of crystals, in words.

    Args:
        crystals: the set; those that came out as no cell (no atoms) count as failures.
        known: training structures, whose usual pattern is looked for and whose formulas are not new.
        real: what the numbers of elements are compared with.

    Returns:
        How many, valid compositions (SMACT), distance of the numbers of elements (Wasserstein), share with the usual pattern,
        of different formulas, share of formulas that are not among the known ones, closest contact at least 0.7 of the radii.
    """
    made = [c for c in crystals if len(c)]
    n, pattern, old = len(crystals), usual_pattern(known), {c.formula for c in known}
    valid = sum(composition_of(c.formula).is_valid for c in made)
    apart = wasserstein([len(c.composition) for c in made], [len(c.composition) for c in real])
    usual = sum(c.anonymous == pattern for c in made)
    different = {c.formula for c in made}
    contact = geometry(made).contact if made else np.zeros(0)
    counts = [usual, len(different), sum(c.formula not in old for c in made), int((contact >= 0.7).sum())]
    return [str(n), share(valid, n), f"{apart:.3f}", *(share(count, n) for count in counts)]


def main(words: Sequence[str] | None = None) -> None:
    """Sample, measure and print the rows, those without a model first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="the set that the flows were trained on")
    parser.add_argument("--checkpoints", nargs="*", default=[], help="name=run folder or file")
    parser.add_argument("--evaluations", nargs="+", type=int, default=[10, 50], help="network calls of a sample")
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--part", default="val", choices=["test", "val"], help="the real crystals")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    data = CrystalDataset(given.data)
    split = split_by_formula(data.formulas, val=0.1, test=0.2)
    known = [data[i] for i in split.train.tolist() if data.lengths[i] <= 20]
    real = [data[i] for i in getattr(split, given.part).tolist() if data.lengths[i] <= 20]
    sets = [
        ("elements by frequency", "0", by_frequency(known, given.num, given.seed), 0.0),
        (f"real, {given.part} part", "-", real, 0.0),
    ]
    for word in given.checkpoints:
        name, _, path = word.rpartition("=")
        flow, file = load_model(path, BUILDER, "crystal flow")
        for steps in given.evaluations:
            start = time.process_time()
            made = sample_like(flow, [len(c) for c in known], given.num, steps, given.seed)
            sets.append((name or file.parent.name, str(steps), made, time.process_time() - start))
    pattern = ":".join(map(str, usual_pattern(known)))
    columns = ("crystals", "evaluations", "n", "valid (SMACT)", "elements, W1", f"pattern {pattern}")
    rows = [[name, steps, *composition_row(c, known, real), f"{spent:.0f}"] for name, steps, c, spent in sets]
    show((*columns, "different formulas", "new formulas", "contact >= 0.7", "CPU s"), rows)
    for row in rows:
        print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()
