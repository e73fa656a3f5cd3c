"""The table of structure prediction: checkpoints at several numbers of evaluations, published and strict matcher.

``python -m manifoldflow.tasks.crystals.studies --reference perov_5.csv.gz --checkpoints geodesic=runs/perov bayesian=runs/bayes``
"""

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from manifoldflow.tasks.common.runs import load_model
from manifoldflow.tasks.crystals.evaluate import judge, prediction_table
from manifoldflow.tasks.crystals.flow import BUILDER, annealed
from manifoldflow.tasks.crystals.predicting import candidates
from manifoldflow.tasks.crystals.splits import split_by_formula
from manifoldflow.tasks.crystals.store import CrystalDataset
from manifoldflow.tasks.crystals.structure import Crystal

COLUMNS = [
    "model",
    "evaluations",
    "choose",
    "slope",
    "method",
    "best of",
    "matcher",
    "match %",
    "RMSE",
    "cRMSE",
    "METRe %",
]


def held_back(reference: str, num: int, part: str = "test", seed: int = 0) -> list[Crystal]:
    """So many crystals of a part of a set, drawn with ``seed``."""
    dataset = CrystalDataset(reference)
    rows = getattr(split_by_formula(dataset.formulas, 0.1, 0.2), part)
    chosen = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:num]]
    return [dataset[int(i)] for i in chosen]


def main(words: Sequence[str] | None = None) -> None:
    """Make the rows that are asked for, print them, and add them to the table as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", required=True, help="set of structures; its test part is used")
    parser.add_argument("--checkpoints", nargs="+", required=True, help="name=run folder or file")
    parser.add_argument("--evaluations", nargs="+", type=int, default=[10, 50], help="network calls of a sample")
    parser.add_argument("--truths", type=int, default=200, help="reference structures")
    parser.add_argument("--samples", type=int, default=1, help="for each of them")
    parser.add_argument("--choose", type=int, default=1, help="draws of which the least doubted is kept")
    parser.add_argument(
        "--slope", type=float, default=None, help="of the annealed velocity; the checkpoint's own if absent"
    )
    parser.add_argument("--part", default="test", choices=["test", "val"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="crystals_table.csv")
    given = parser.parse_args(words)
    truth = held_back(given.reference, given.truths, given.part)
    cells = [c.species.tolist() for c in truth]
    for word in given.checkpoints:
        name, _, path = word.rpartition("=")
        flow, file = load_model(path, BUILDER, "crystal flow")
        if given.slope is not None:
            annealed(flow, given.slope)
        for steps in given.evaluations:
            start = time.process_time()
            made = candidates(flow, cells, given.samples, steps=steps, seed=given.seed, choose=given.choose)
            spent = time.process_time() - start
            judged = judge(name or file.parent.name, made, truth, given.samples, workers=1)
            _, rows, _ = prediction_table([judged])
            slope = "" if given.slope is None else f"{given.slope:g}"
            add_rows(Path(given.out), [[name, str(steps), str(given.choose), slope, *row] for row in rows])
            for row in rows:
                print(name, steps, given.choose, slope, *row, f"{spent:.1f} s", flush=True)


def add_rows(path: Path, rows: list[list[str]]) -> None:
    """Rows at the end of a table, with its head where it is new."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(([COLUMNS] if is_new else []) + rows)


if __name__ == "__main__":
    main()
