"""What ``manifoldflow train crystals`` runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import manifoldflow as mf
from manifoldflow.tasks.common.runs import command_line, run_folder
from manifoldflow.tasks.crystals.baselines import alike
from manifoldflow.tasks.crystals.batches import Exchange, Guesses, state_of, training_batches
from manifoldflow.tasks.crystals.conditions import read_conditions, values_of
from manifoldflow.tasks.crystals.flow import CrystalConfig, Method, build
from manifoldflow.tasks.crystals.pairs import guess_pairs
from manifoldflow.tasks.crystals.sources import LogNormalCells
from manifoldflow.tasks.crystals.splits import split_by_formula
from manifoldflow.tasks.crystals.store import CrystalDataset
from manifoldflow.tasks.crystals.structure import Crystals, collate
from manifoldflow.training import TrainConfig, fit

TRAINING = TrainConfig(max_steps=5000, learning_rate=1e-3, ema=0.998, decay=0.4, validate_every=1000)


def train(
    data: str,
    out: str | None = None,
    method: Method | None = None,
    model: CrystalConfig = CrystalConfig(),  # noqa: B008 - read, never changed
    training: TrainConfig = TRAINING,
    batch: int = 64,
    max_pairs: int = 6400,
    most_atoms: int = 20,
    prototypes: float = 0.0,
    exchange: float = 0.0,
    conditions: list[str] | None = None,
    val: float = 0.1,
    test: float = 0.2,
    init: str | None = None,
    resume: bool = False,
) -> None:
    """Train a crystal flow: structure prediction, de novo generation, or both in one model.

    Crystals are held back by reduced formula, so polymorphs stay on one side; the test part is never seen.

    Args:
        data: set made by `manifoldflow prepare crystals`, or a file of structures (a table with a column of CIFs, gzip or not).
        out: folder of the run; `runs/crystals/DATA` by default.
        method: how positions are generated: geodesic (flow matching), diffusion, interpolant or bayesian; short for
            `--model.method`.
        model: the flow and its network. `--model.given_species 1` learns structure prediction alone, 0 de novo generation
            alone, between them both in one model.
        training: the optimiser, the schedule and the devices.
        batch: crystals in a batch, at most.
        max_pairs: pairs of atoms in a batch, padding included; what time and memory grow with.
        most_atoms: leave out crystals with more atoms.
        prototypes: share of the batches that start from substituted prototypes instead of noise, for `sample --from`.
        exchange: share of the other crystals whose elements are each exchanged for one of the six most like it, volumes scaled by
            the radii (augmentation).
        conditions: what crystals may be asked to be: space_group (found by spglib where the data do not tell), energy_above_hull,
            band_gap; with the label's name where it is another one, such as energy_above_hull=heat_all. Each is hidden from every
            second crystal, so it may be left open at sampling.
        val: share of the formulas for the validation loss.
        test: share of the formulas held back for `evaluate`.
        init: checkpoint (file, run folder or name) to start from instead of random weights; its model configuration is used.
        resume: continue the run in `out`, or start it if there is none.
    """
    torch.manual_seed(training.seed)
    dataset = CrystalDataset(data)
    train_rows, val_rows, counts = rows_of(dataset, val, test, most_atoms)
    crystals = dataset.batch(train_rows)
    held = dataset.batch(val_rows) if val_rows else crystals.rows(slice(0, 0))
    guesses = _guesses(dataset, train_rows, prototypes, counts) if prototypes > 0 else None
    swaps = Exchange(torch.as_tensor(alike(dataset[i] for i in train_rows)), exchange) if exchange > 0 else None
    told = values_of(dataset, train_rows, read_conditions(conditions or []))
    if init is None:
        source = LogNormalCells.fit(state_of(crystals)["lattice"])
        chosen = replace(
            model,
            method=method or model.method,
            cell_mean=source.mean,
            cell_scale=source.scale,
            conditions=tuple(told),
            condition_mean=tuple(float(v.nanmean()) for v in told.values()),
            condition_scale=tuple(max(float(v[v.isfinite()].std()), 1e-3) for v in told.values()),
        )
        flow = build(chosen)
    else:
        flow = mf.load(init).train()
        had = tuple((flow.config or {}).get("conditions") or ())
        if set(told) - set(had):
            able = f"with {', '.join(had)}" if had else "without conditions"
            raise ValueError(f"--conditions: {init} was trained {able}; others need a model from scratch")
    folder = Path(out) if out else run_folder("crystals", Path(data).name.split(".")[0])
    facts: dict[str, Any] = {
        "command": command_line(),
        "data": Path(data).name,
        "init": init,
        "prototypes": prototypes,
        "exchange": exchange,
        "conditions": conditions or [],
        "split": [val, test],
        **counts,
    }
    rows = torch.arange(len(held.mask))
    checks = [_batch(held, part) for part in rows.split(batch)] if len(rows) else None
    fit(
        flow,
        training_batches(crystals, batch, max_pairs, training.seed, guesses, swaps, told),
        training,
        out=folder,
        validation=checks,
        resume=resume,
        facts=facts,
    )
    print(
        f"wrote {folder}/model.safetensors; try: manifoldflow sample crystals --checkpoint {folder} --formula NaCl --out made/"
    )


def rows_of(
    dataset: CrystalDataset, val: float, test: float, most_atoms: int
) -> tuple[Sequence[int], Sequence[int], dict[str, int]]:
    """The training and validation rows of a set, and how many there are of what.

    Raises:
        ValueError: no crystal is left for training.
    """
    split = split_by_formula(dataset.formulas, val, test)

    def small(rows: torch.Tensor) -> Sequence[int]:
        return [i for i in rows.tolist() if dataset.lengths[i] <= most_atoms]

    train_rows, val_rows = small(split.train), small(split.val)
    if not train_rows:
        raise ValueError(f"the data: no crystal of at most {most_atoms} atoms is left for training")
    counts = {"crystals": len(train_rows), "validation_crystals": len(val_rows), "test_crystals": len(split.test)}
    return train_rows, val_rows, counts


def _guesses(dataset: CrystalDataset, rows: Sequence[int], share: float, counts: dict[str, int]) -> Guesses:
    known = [dataset[i] for i in rows]
    of, guesses = guess_pairs(known, known)
    if not guesses:
        raise ValueError("--prototypes: no training crystal has the structure of another one with other elements")
    counts["pairs"] = len(guesses)
    return Guesses(torch.tensor(of), collate(guesses), share)


def _batch(crystals: Crystals, rows: torch.Tensor) -> dict[str, Any]:
    some = crystals.rows(rows)
    return {"x": state_of(some), "mask": some.mask}
