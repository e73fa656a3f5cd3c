"""The commands of the density task: what ``manifoldflow train|evaluate|sample|plot densities`` runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.tasks.common.files import atomic, write_csv
from manifoldflow.tasks.common.plots import save_figure
from manifoldflow.tasks.common.runs import command_line, load_model, run_folder, source_of
from manifoldflow.tasks.common.splits import Split
from manifoldflow.tasks.common.tables import plural
from manifoldflow.tasks.densities.data import DataSet, load_data
from manifoldflow.tasks.densities.fitting import TRAINING, fit_density
from manifoldflow.tasks.densities.flow import DensityConfig
from manifoldflow.tasks.densities.scores import print_scores
from manifoldflow.tasks.densities.spaces import name_of, to_table
from manifoldflow.tasks.densities.splits import SplitKind, split
from manifoldflow.training import TrainConfig


def train(
    data: str,
    manifold: str | None = None,
    out: str | None = None,
    columns: str | None = None,
    units: Literal["degrees", "radians"] | None = None,
    group_column: str | None = None,
    drop_nan: bool = False,
    data_folder: str | None = None,
    split_by: SplitKind = "published",
    split_seed: int = 0,
    model: DensityConfig = DensityConfig(),  # noqa: B008 - read, never changed
    training: TrainConfig = TRAINING,
    batch_size: int = 256,
    evaluation_steps: int = 100,
    resume: bool = False,
) -> None:
    """Train a density flow, and score it on test points beside kernel density estimates.

    Args:
        data: a set by name (earthquake, volcano, torsions:General, rotamers:GLN, so3_modes ...) or a CSV, TSV or NPZ file.
        manifold: where the points of a file live: sphere, torus:3, so3, quaternion, simplex:4, euclidean:2.
        out: folder of the run; `runs/densities/NAME` by default.
        columns: of a file: names or numbers of the columns, with commas; latitude and longitude are found by their names.
        units: of the angles in a file; degrees unless told otherwise.
        group_column: of a file: rows with the same value stay on one side with `--split_by chain`.
        drop_nan: leave out rows that lack a number, instead of an error.
        data_folder: where the shared sets lie, if not beside the checkout or at $MANIFOLDFLOW_DATA.
        split_by: `published` (rows at random, copies of test points may be in training), `deduplicated` (equal points are
            merged first), or `chain` (whole groups on one side).
        split_seed: of the split into 80 % for training, 10 % for validation, 10 % for testing.
        model: the flow and its network.
        training: the optimiser, the schedule and the devices; the weights with the best validation NLL are kept.
        batch_size: points in a batch.
        evaluation_steps: solver steps of the scores.
        resume: continue the run in `out`, or start it if there is none.
    """
    if batch_size < 1 or evaluation_steps < 2:
        raise ValueError(
            f"--batch_size must be at least 1 and --evaluation_steps at least 2, got {batch_size}, {evaluation_steps}"
        )
    source: dict[str, Any] = {
        "data": data,
        "manifold": manifold,
        "columns": columns,
        "units": units,
        "group_column": group_column,
        "drop_nan": drop_nan,
    }
    loaded, parts = _load(source | {"split": split_by, "split_seed": split_seed}, data_folder)
    if len(parts.train) < 2:
        raise ValueError(f"{loaded.name}: {len(parts.train)} training rows are too few")
    folder = Path(out) if out else run_folder("densities", loaded.name)
    facts = {
        "command": command_line(),
        "source": source | {"split": split_by, "split_seed": split_seed},
        "rows": [len(part) for part in parts],
    }
    flow = fit_density(loaded, parts, model, training, folder, batch_size=batch_size, resume=resume, facts=facts)
    print_scores(flow, loaded, parts, evaluation_steps, folder / "scores.json")
    model_file = folder / "model.safetensors"
    print(f"wrote {model_file}; try: manifoldflow plot densities --checkpoint {model_file} --out density.png")


def evaluate(
    checkpoint: str,
    data: str | None = None,
    part: Literal["test", "val", "train"] = "test",
    steps: int = 100,
    mass: int = 0,
    out: str | None = None,
    data_folder: str | None = None,
) -> None:
    """Score a density flow: NLL in nats, beside the uniform law and kernel density estimates.

    Args:
        checkpoint: a model file, or a run folder.
        data: another place of the set or file that the flow was trained on; its split is made again.
        part: which rows to score.
        steps: solver steps; the error they leave is printed.
        mass: check by this many uniform points that the density integrates to 1 (100000 takes minutes); 0 for no check.
        out: also write the scores to this JSON file.
        data_folder: where the shared sets lie.
    """
    if steps < 2 or mass < 0:
        raise ValueError(f"--steps must be at least 2 and --mass at least 0, got {steps} and {mass}")
    flow, path = _load_flow(checkpoint)
    source = source_of(path, "train densities")
    if data is not None:
        source["data"] = data
    loaded, parts = _load(source, data_folder)
    _same_space(flow, loaded, path)
    print_scores(flow, loaded, parts, steps, None if out is None else Path(out), part=part, mass=mass)


def sample(
    checkpoint: str,
    num: int = 1000,
    out: str = "samples.csv",
    steps: int = 100,
    method: Literal["euler", "midpoint", "heun", "rk4"] = "midpoint",
    seed: int = 0,
    log_prob: bool = False,
) -> None:
    """Draw points from a density flow and write them to a CSV or NPZ file.

    Args:
        checkpoint: a model file, or a run folder.
        num: number of points.
        out: file to write; its ending says which kind. Angles are in degrees, rotations matrices by rows.
        steps: sampling steps.
        method: integrator.
        seed: of the random draws; the same seed gives the same points.
        log_prob: add a column with the log-density of every point.
    """
    if num < 1 or steps < 1:
        raise ValueError(f"--num and --steps must be at least 1, got {num} and {steps}")
    target = Path(out)
    if target.suffix.lower() not in (".csv", ".npz"):
        raise ValueError(f"--out {out}: the file must end in .csv or .npz")
    flow, _ = _load_flow(checkpoint)
    space = flow.path["x"].space
    x = flow.sample(num, steps=steps, method=method, generator=torch.Generator().manual_seed(seed))
    names, numbers = to_table(space, x.double())
    if log_prob:
        with torch.no_grad():
            names, numbers = [*names, "log_prob"], torch.cat([numbers, flow.log_prob(x).double().unsqueeze(-1)], -1)
    write_points(target, names, numbers)
    print(f"wrote {plural(num, 'point')} on {name_of(space)} to {target}")


def plot(
    checkpoint: str,
    out: str = "density.png",
    points: Literal["test", "train", "none"] = "test",
    samples: int = 1000,
    steps: int = 30,
    seed: int = 0,
    title: str | None = None,
    data_folder: str | None = None,
) -> None:
    """Draw a density flow: a world map, a Ramachandran plot, marginals of a torus, or axes of rotations.

    Args:
        checkpoint: a model file, or a run folder.
        out: picture to write (.png, .pdf, .svg).
        points: data points to show on the density.
        samples: number of the flow's own points to show; 0 for none.
        steps: solver steps of densities and samples.
        seed: of the samples.
        title: above the picture; the set's name by default.
        data_folder: where the shared sets lie.
    """
    from manifoldflow.tasks.densities.plots import density_figure

    if samples < 0 or steps < 1:
        raise ValueError(f"--samples must be at least 0 and --steps at least 1, got {samples} and {steps}")
    flow, path = _load_flow(checkpoint)
    space = flow.path["x"].space
    shown, labels = None, None
    source = source_of(path, "train densities")
    if points != "none":
        loaded, parts = _load(source, data_folder)
        _same_space(flow, loaded, path)
        shown = loaded.x[parts.test if points == "test" else parts.train]
        labels = loaded.columns or None
    drawn = None
    if samples:
        drawn = flow.sample(samples, steps=steps, method="midpoint", generator=torch.Generator().manual_seed(seed))

    def log_density(x: Tensor) -> Tensor:
        with torch.no_grad():
            return flow.log_prob(x.to(next(flow.parameters()).dtype), steps=steps)

    figure = density_figure(
        space,
        log_density,
        points=shown,
        samples=drawn,
        title=source["data"] if title is None else title,
        labels=labels,
        earth=labels is None or len(labels) == 2,
    )
    save_figure(figure, out)
    print(f"wrote {out}")


def write_points(path: Path, names: Sequence[str], numbers: Tensor) -> None:
    """A table of numbers ``(N, len(names))`` to a CSV or NPZ file, complete or not at all."""
    if path.suffix.lower() == ".npz":
        import numpy as np

        with atomic(path) as fresh, fresh.open("wb") as file:
            np.savez_compressed(file, points=numbers.numpy(), columns=np.array(names))
    else:
        write_csv(path, names, ([f"{v:.9g}" for v in row] for row in numbers.tolist()))


def _load(source: dict[str, Any], data_folder: str | None) -> tuple[DataSet, Split]:
    """The data set of a run and its split."""
    loaded = load_data(
        source["data"],
        source["manifold"],
        columns=source["columns"],
        units=source["units"],
        group_column=source["group_column"],
        drop_nan=source["drop_nan"],
        data_folder=data_folder,
    )
    return loaded, split(loaded, source["split"], source["split_seed"])


def _load_flow(checkpoint: str) -> tuple[mf.Flow, Path]:
    return load_model(checkpoint, "manifoldflow.tasks.densities.flow:build", "density flow")


def _same_space(flow: mf.Flow, data: DataSet, path: Path) -> None:
    space = flow.path["x"].space
    if space != data.space:
        raise ValueError(f"{data.name} lies on {name_of(data.space)}, the flow of {path} on {name_of(space)}")
