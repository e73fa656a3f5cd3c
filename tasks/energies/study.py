"""log Z over energy calls: Monte Carlo to budgets beside trained samplers, in one table.

    python -m manifoldflow.tasks.energies.study --out study.json --runs runs/energies

Monte Carlo runs here; samplers are read from the folders that ``manifoldflow train energies`` left: ``curve.csv`` and
``report.json``.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from manifoldflow.tasks.common.seeds import seeds_of
from manifoldflow.tasks.common.tables import Kept, markdown, spread
from manifoldflow.tasks.energies.montecarlo import measured, run_monte_carlo
from manifoldflow.tasks.energies.targets import load_target

BUDGETS = (10_000, 30_000, 100_000, 300_000, 1_200_000)


def monte_carlo_rows(kept: Kept, targets: list[str], seeds: list[int], budgets: tuple[int, ...] = BUDGETS) -> None:
    """Both methods to every budget, a curve a seed; rows that are there already are left alone."""
    for name in targets:
        target = load_target(name)
        for method in ("smc", "pt"):
            for seed in seeds:
                if (key := f"{name} {method} {seed}") in kept:
                    continue
                curve = []
                for calls in budgets:
                    row = measured(target, run_monte_carlo(target, method, calls, seed))  # type: ignore[arg-type]
                    curve.append(row)
                kept.add(key, {"target": name, "method": method, "seed": seed, "curve": curve, "last": curve[-1]})


def run_rows(kept: Kept, folder: Path) -> None:
    """Trained samplers from the folders of their runs."""
    for report in sorted(folder.glob("*/report.json")):
        row = json.loads(report.read_text(encoding="utf-8"))
        path = report.parent / "curve.csv"
        curve: list[dict[str, float]] = []
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                curve = [{k: float(v) for k, v in r.items()} for r in csv.DictReader(file)]
        if "off" in row:
            entry = {k: row[k] for k in ("target", "method", "seed")} | {"curve": curve, "last": row}
            kept.add(f"{row['target']} {row['method']} {row['seed']}", entry)


def table(rows: dict[str, Any]) -> str:
    """A row a target and method: last and best error, effective share, modes, calls; the least mean error is marked."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows.values():
        groups.setdefault((row["target"], row["method"]), []).append(row)
    lines = []
    for target in dict.fromkeys(t for t, _ in groups):
        own = {m: g for (t, m), g in groups.items() if t == target}
        means = {m: sum(abs(r["last"]["off"]) for r in g) / len(g) for m, g in own.items()}
        for method, group in own.items():
            last = [r["last"] for r in group]
            best = [abs(r["last"].get("best_off", min((p["off"] for p in r["curve"]), key=abs))) for r in group]
            calls = sum(r.get("training_calls") or r["calls"] for r in last) / len(last)
            modes = "-" if "modes" not in last[0] else f"{min(r['modes'] for r in last)}/{last[0]['modes_in_all']}"
            mark = "**" if len(means) > 1 and means[method] == min(means.values()) else ""
            with_bins = "tv" in last[0]
            lines.append(
                [
                    target,
                    method,
                    str(len(group)),
                    f"{mark}{spread(abs(r['off']) for r in last)}{mark}",
                    spread(best),
                    spread((r["share"] for r in last), 2),
                    modes,
                    spread(r["tv_weighted"] for r in last) if with_bins else "-",
                    f"{last[0]['tv_floor']:.3f}" if with_bins else "-",
                    f"{calls:,.0f}",
                ]
            )
    columns = [
        "target",
        "method",
        "seeds",
        "log Z off, last",
        "best",
        "effective share",
        "modes",
        "TV",
        "floor",
        "calls",
    ]
    return markdown(columns, lines)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="JSON file of the rows; what is there is not made again")
    parser.add_argument("--runs", help="folder of trained runs")
    parser.add_argument("--targets", default="mixture9,funnel,manywell")
    parser.add_argument("--seeds", type=seeds_of, default=[0, 1, 2])
    given = parser.parse_args(argv)
    kept = Kept(given.out)
    if given.runs:
        run_rows(kept, Path(given.runs))
    monte_carlo_rows(kept, given.targets.split(","), given.seeds)
    print(table(kept.rows()))


if __name__ == "__main__":
    main()
