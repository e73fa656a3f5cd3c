"""The runs behind the tables in this folder's README: one model per data set, split, recipe and seed.

    python -m manifoldflow.tasks.densities.protocol --out runs/densities --table main
    python -m manifoldflow.tasks.densities.protocol --out runs/densities --show

Every finished run is kept in ``OUT/table.json``, so a run that was stopped goes on with what is missing.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import manifoldflow as mf
from manifoldflow.tasks.common.tables import Kept, markdown, spread
from manifoldflow.tasks.densities.data import EARTH, TORSIONS, load_data
from manifoldflow.tasks.densities.fitting import TRAINING, fit_density
from manifoldflow.tasks.densities.flow import DensityConfig
from manifoldflow.tasks.densities.scores import baselines, flow_score
from manifoldflow.tasks.densities.splits import seen_share, split
from manifoldflow.training import TrainConfig

RECIPES = {
    "default": DensityConfig(),
    "plain": DensityConfig(features="coordinates", width=256, depth=5),
    "plain, low variance": DensityConfig(features="coordinates", width=256, depth=5, low_variance=True),
    "waves": DensityConfig(features="waves", finest=0.01, wave_length=64.0),
    "waves, low variance": DensityConfig(features="waves", finest=0.01, wave_length=64.0, low_variance=True),
    "landmarks and waves": DensityConfig(features="landmarks", finest=1e-3),
}
"""Models that are compared. The default one is what ``train`` takes: landmarks or waves, by the data."""

STEPS = {"volcano": 6000, "earthquake": 3000, "torsions": 1500, "rotamers": 4000}
"""Training steps: one to four minutes on one core."""


class Run(NamedTuple):
    """One model: a data set, a split, a recipe and a seed."""

    data: str
    split: Any
    recipe: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the table."""
        return "/".join(map(str, self))

    @property
    def group(self) -> str:
        """The name of its row: everything but the seed."""
        return self.key.rsplit("/", 1)[0]


def main_runs(seeds: int) -> list[Run]:
    """The earth sets in both splits, with the default recipe."""
    return [
        Run(name, kind, "default", s) for s in range(seeds) for name in EARTH for kind in ("published", "deduplicated")
    ]


def torsion_runs(seeds: int) -> list[Run]:
    """The four residue classes."""
    return [Run(f"torsions:{name}", "published", "default", s) for s in range(seeds) for name in TORSIONS]


def rotamer_runs(seeds: int) -> list[Run]:
    """Tori of dimension 3 to 6."""
    residues = ("CYS", "HIS", "TRP", "MET", "GLN", "LYS")
    return [Run(f"rotamers:{n}", "published", "default", s) for s in range(seeds) for n in residues]


def ablation_runs(seeds: int) -> list[Run]:
    """All other recipes on the earth sets."""
    others = [name for name in RECIPES if name != "default"]
    kinds = ("published", "deduplicated")
    return [Run(name, kind, r, s) for s in range(seeds) for name in EARTH for kind in kinds for r in others]


TABLES = {"main": main_runs, "torsions": torsion_runs, "rotamers": rotamer_runs, "ablation": ablation_runs}


def run_one(run: Run, out: Path, evaluation_steps: int, most_test: int, factor: float = 1.0) -> dict[str, Any]:
    """Train and score one model."""
    data = load_data(run.data)
    parts = split(data, run.split, run.seed)
    test = parts.test[:most_test]
    steps = max(1, round(STEPS.get(run.data.split(":")[0], 3000) * factor))
    is_torus = isinstance(data.space, mf.Torus)
    training: TrainConfig = replace(
        TRAINING,
        max_steps=steps,
        validate_every=max(1, steps // 4),
        checkpoint_every=steps,
        learning_rate=2e-3 if is_torus else 1e-3,
        seed=run.seed,
        progress=False,
    )
    folder = out / run.key.replace("/", "-").replace(":", "-").replace(", ", "-").replace(" ", "-")
    own = dict.fromkeys(("manifold", "columns", "units", "group_column"))
    source = own | {"data": run.data, "drop_nan": False, "split": run.split, "split_seed": run.seed}
    began = time.process_time()
    flow = fit_density(
        data,
        parts,
        RECIPES[run.recipe],
        training,
        folder,
        batch_size=512 if is_torus else 256,
        resume=True,
        facts={"source": source},
    )
    seconds = time.process_time() - began
    return {
        **flow_score(flow, data.x[test], evaluation_steps),
        **baselines(data, parts, test),
        "seen": seen_share(data, parts),
        "rows": [len(part) for part in parts],
        "test_rows": len(test),
        "steps": steps,
        "cpu_minutes": round(seconds / 60, 2),
    }


def summary(table: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with means and standard deviations over the seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, row in table.items():
        groups.setdefault(key.rsplit("/", 1)[0], []).append(row)
    columns = ["set", "split", "model", "seeds", "NLL (nats)", "KDE, one scale", "KDE, two scales", "uniform"]
    columns += ["copies in test", "solver error", "CPU min"]
    lines = []
    for group, rows in groups.items():
        nll, *others = (spread((row[c] for row in rows), 2) for c in ("nll", "kde_one", "kde_two", "uniform"))
        copies = f"{statistics.mean(row['seen'] for row in rows):.0%}"
        error, minutes = (statistics.mean(row[c] for row in rows) for c in ("solver_error", "cpu_minutes"))
        cells = [*group.split("/"), str(len(rows)), f"**{nll}**", *others]
        lines.append([*cells, copies, f"{error:.3f}", f"{minutes:.1f}"])
    return markdown(columns, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/densities"), help="folder of runs and of table.json")
    parser.add_argument("--table", choices=TABLES, default="main", help="which runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="only runs whose key contains this")
    parser.add_argument("--steps", type=int, default=100, help="solver steps of the scores")
    parser.add_argument("--test", type=int, default=2000, help="at most so many test points")
    parser.add_argument("--factor", type=float, default=1.0, help="of the training steps, to try things out")
    parser.add_argument("--show", action="store_true", help="print the table and stop")
    a = parser.parse_args(arguments)
    kept = Kept(a.out / "table.json")
    if a.show:
        print(summary(kept.rows()))
        return
    for run in TABLES[a.table](a.seeds):
        if run.key in kept or a.only not in run.key:
            continue
        row = run_one(run, a.out, a.steps, a.test, a.factor)
        kept.add(run.key, row)
        print(run.key, {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    main()
