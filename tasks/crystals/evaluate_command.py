"""What ``manifoldflow evaluate crystals`` runs."""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from manifoldflow.files import write_json
from manifoldflow.tasks.common.files import write_csv
from manifoldflow.tasks.common.splits import chosen_rows
from manifoldflow.tasks.common.tables import plural, show
from manifoldflow.tasks.crystals.baselines import RULES, Rule, predict
from manifoldflow.tasks.crystals.evaluate import MATCHERS, Judged, judge, judge_set, prediction_table, set_rows
from manifoldflow.tasks.crystals.matching import best_of
from manifoldflow.tasks.crystals.metrics import composition_of, geometry
from manifoldflow.tasks.crystals.reading import Rejected, load_crystals
from manifoldflow.tasks.crystals.splits import split_by_formula
from manifoldflow.tasks.crystals.store import CrystalDataset, find_set, is_prepared
from manifoldflow.tasks.crystals.structure import Crystal


def evaluate(
    reference: str,
    num: int = 1,
    samples: str | None = None,
    checkpoint: str | None = None,
    rule: Rule | None = None,
    data: str | None = None,
    part: Literal["all", "val", "test"] = "all",
    most: int = 0,
    beside: bool = True,
    steps: int | None = None,
    out: str | None = None,
    column: str | None = None,
    name: str | None = None,
    workers: int = 0,
    timeout: float = 30.0,
    seed: int = 0,
) -> None:
    """Judge structure prediction against reference structures, beside the rows that need no model; and sets against sets.

    For every reference structure the composition of its cell is given and up to `num` structures are compared with it: by the
    published matcher (stol 0.5, angle 10, ltol 0.3) and a strict one (0.3, 5, 0.2), with match rate, RMSE over matches, cRMSE (a
    structure without a match counts 0.5) and METRe. Goes on past structures that cannot be read and says which.

    Args:
        reference: the truth: CSV with a column of CIFs, a structure file, a folder, or a prepared set.
        num: candidates for each structure; 1, 5 and 20 are shown where there are so many.
        samples: folder or file of structures to judge, paired by formula in the order of their names. What has no partner
            is only measured as a set: validity, uniqueness, novelty, coverage, densities, space groups.
        checkpoint: model to sample from instead: embedded name, file or run folder.
        rule: structures without a model instead: random atoms, the ideal prototype by radii, or the nearest known structure
            with elements substituted.
        data: training set, for the rule substitute and for novelty; the reference itself if absent, its structures of the same
            formula never being used.
        part: judge all of the reference, or the part held back by formula (as training holds it back: val 10 %, test 20 %).
        most: at most so many reference structures, drawn with seed 0; 0 for all.
        beside: add the rows without a model to those of samples or a checkpoint.
        steps: of sampling from a checkpoint; its own number if absent.
        out: write one row per reference structure to this CSV file and the summary beside it as JSON.
        column: of a table: the column that holds CIFs.
        name: of a table: the column of names.
        workers: processes; 0 for one per processor. The numbers do not depend on it.
        timeout: seconds for one comparison; what takes longer is no match, and counted.
        seed: of random atoms and of sampling.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: nothing to judge, or options that exclude each other.
    """
    chosen = [
        option
        for option, value in (("samples", samples), ("checkpoint", checkpoint), ("rule", rule))
        if value is not None
    ]
    if len(chosen) > 1:
        raise ValueError(f"--{chosen[0]} and --{chosen[1]} exclude each other: judge one thing at a time")
    if num < 1 or most < 0 or workers < 0 or not timeout > 0:
        raise ValueError(
            f"expected num >= 1, most >= 0, workers >= 0 and timeout > 0, got {num}, {most}, {workers}, {timeout:g}"
        )
    target = Path(out) if out is not None else None
    if target is not None and (target.is_dir() or target.suffix.lower() == ".json"):
        raise ValueError(f"--out {out}: expected the name of a CSV file; the summary goes beside it as JSON")
    everything, rejected = _load(reference, column, name)
    known: Any = everything
    truth = everything
    if part != "all":
        split = split_by_formula([c.formula for c in everything], 0.1, 0.2)
        truth = [everything[i] for i in getattr(split, part).tolist()]
        known = [everything[i] for i in split.train.tolist()]
    if most and most < len(truth):
        truth = [truth[i] for i in sorted(chosen_rows(len(truth), most).tolist())]
    if not truth:
        raise ValueError(f"{reference}: no structure is left in the part {part!r}")
    if data is not None:
        known = CrystalDataset(data)
    judged: list[Judged] = []
    made: dict[str, list[list[Crystal]]] = {}
    measured: dict[str, Any] | None = None
    if samples is not None:
        found, more = load_crystals(samples)
        rejected += more
        if not found:
            raise ValueError(f"{samples}: no structure can be used; the first reason: {more[0] if more else 'none'}")
        made[Path(samples).name] = _paired(found, truth)
        measured = judge_set(found, truth, known if data is not None else None, workers=workers, timeout=timeout)
    elif rule is None:
        from manifoldflow.tasks.crystals.predicting import predict as sample  # late: rules need no model

        word = Path(checkpoint).name if checkpoint is not None else "embedded model"
        made[word] = sample(checkpoint, [c.species.tolist() for c in truth], num, steps=steps, seed=seed)
    rules: tuple[Rule, ...] = (rule,) if rule is not None else RULES if beside else ()
    for each in rules:
        made[f"rule: {each}"] = predict(each, [c.species.tolist() for c in truth], num, known=known, seed=seed)
    is_paired = False
    for method, candidates in made.items():
        if any(candidates):
            is_paired = True
            judged.append(judge(method, candidates, truth, num, workers=workers, timeout=timeout, progress=True))
        else:
            print(f"{method}: no candidate for any of {plural(len(truth), 'structure')}, so it has no row")
    if is_paired:
        columns, rows, notes = prediction_table(judged)
        title = f"{reference}: {plural(len(truth), 'structure')}" + (f" of the part {part}" if part != "all" else "")
        show(columns, rows, title, notes)
    elif measured is None:
        print(f"none of {plural(len(truth), 'formula', 'formulas')} can be made by {', '.join(made)}")
    if measured is not None:
        show(
            ("measure", "value"), set_rows(measured), f"{samples}: {plural(measured['samples'], 'structure')} as a set"
        )
        if not is_paired:
            print("no sample has the formula of a reference structure, so nothing was matched")
    for item in rejected[:10]:
        print(f"left out: {item}")
    if len(rejected) > 10:
        print(f"... and {len(rejected) - 10} more left out")
    if target is not None:
        _write(target, truth, judged, measured, rejected)


def _load(source: str, column: str | None, name: str | None) -> tuple[list[Crystal], list[Rejected]]:
    path = find_set(source)
    if is_prepared(path):
        return list(CrystalDataset(path)), []
    crystals, rejected = load_crystals(path, column=column, name=name)
    if not crystals:
        raise ValueError(f"{source}: no structure can be used; the first reason: {rejected[0] if rejected else 'none'}")
    return crystals, rejected


def _paired(samples: list[Crystal], truth: list[Crystal]) -> list[list[Crystal]]:
    """The samples of the formula of each reference structure, in the order of their names."""
    groups: dict[str, list[Crystal]] = {}
    for crystal in samples:  # files are read in the order of their names
        groups.setdefault(crystal.formula, []).append(crystal)
    return [groups.get(crystal.formula, []) for crystal in truth]


def _write(
    path: Path, truth: list[Crystal], judged: list[Judged], measured: dict[str, Any] | None, rejected: list[Rejected]
) -> None:
    shape = geometry(truth)
    columns = ["name", "formula", "units", "atoms", "density", "contact", "composition"]
    for item in judged:
        columns += [f"{item.method}, {matcher.name} RMS" for matcher in MATCHERS]
    best = [[best_of(item.rms[:, :, k], item.rms.shape[1]) for k in range(len(MATCHERS))] for item in judged]
    rows = []
    for i, crystal in enumerate(truth):
        charge = composition_of(crystal.formula)
        row: list[Any] = [crystal.name, crystal.formula, crystal.units, len(crystal)]
        row += [f"{shape.density[i]:.4f}", f"{shape.contact[i]:.4f}", "neutral" if charge.is_valid else charge.reason]
        row += ["" if np.isnan(values[i]) else f"{values[i]:.5f}" for some in best for values in some]
        rows.append(row)
    write_csv(path, columns, rows)
    summary: dict[str, Any] = {"methods": {item.method: item.summary() for item in judged}}
    summary["left_out"] = [str(item) for item in rejected]
    if measured is not None:
        summary["set"] = measured
    write_json(path.with_suffix(".json"), summary)
    print(f"wrote {path} and {path.with_suffix('.json')}")
