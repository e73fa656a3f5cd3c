"""The commands of the energies task: what ``manifoldflow train|sample|evaluate|plot energies`` runs."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from manifoldflow.energies import DiffusionSampler, EnergyError
from manifoldflow.files import atomic, write_json
from manifoldflow.state import fields
from manifoldflow.tasks.common.files import write_csv
from manifoldflow.tasks.common.plots import save_figure
from manifoldflow.tasks.common.runs import command_line, load_model, run_folder
from manifoldflow.tasks.common.seeds import generator_of, seeds_of
from manifoldflow.tasks.common.tables import Kept, show
from manifoldflow.tasks.energies.montecarlo import Result, measured, run_monte_carlo
from manifoldflow.tasks.energies.sampler import SamplerConfig, fill_buffer, make
from manifoldflow.tasks.energies.targets import GENERATORS, Target, load_target
from manifoldflow.training import TrainConfig, fit

BUILDER = "manifoldflow.tasks.energies.sampler:build"
TRAINING = TrainConfig(
    max_steps=400, learning_rate=3e-3, weight_decay=0.0, betas=(0.9, 0.999), warmup_steps=20, schedule="cosine",
    gradient_clip=50.0, ema=0.98, precision="32-true", log_every=25, checkpoint_every=100,
)  # fmt: skip


def train(
    target: str,
    method: Literal["tb", "dgfs", "vargrad", "pis", "dds", "adaptive", "boltzmann"] = "tb",
    out: str | None = None,
    space: str | None = None,
    scale: float | None = None,
    sampler: SamplerConfig | None = None,
    training: TrainConfig = TRAINING,
    batch_size: int = 256,
    evaluations: int = 10,
    evaluation_size: int = 2000,
    final_size: int = 10_000,
    timeout: float = 0.0,
    resume: bool = False,
) -> None:
    """Train a sampler of an energy, and write its curve over energy calls and its final numbers.

    The run's folder gets `model.safetensors`, `metrics.csv`, `curve.csv` (energy calls, log Z, effective share, modes) and
    `report.json` with the last and the best value. An energy that fails ends the run with one line that names the sample; the run
    is saved and goes on with `--resume`.

    Args:
        target: mixture9, funnel, manywell, torsion, sphere3, rotations2, alanine, ice, or an energy of yours:
            `module:function` or `file.py:function`, which takes states `(B, ...)` and returns energies `(B,)` in kT.
        method: `tb` (trajectory balance, replay buffer, local search), `dgfs`, `vargrad`, `pis`, `dds`, `adaptive`
            (few steps with a learned way back), or `boltzmann` (a normalising flow: alanine and ice alone, with their own
            settings, see tasks/energies/README.md).
        out: folder of the run; `runs/energies/TARGET_METHOD` by default.
        space: of an energy of yours: euclidean:D, torus:D (radians), sphere:D or so3.
        scale: a length that reaches over the target.
        sampler: the diffusion and its network; the target's own settings by default.
        training: the optimiser, the schedule, the seed.
        batch_size: trajectories a step.
        evaluations: how many times the curve is taken. Their energy calls are not counted with the training's.
        evaluation_size: samples of each.
        final_size: samples of the report.
        timeout: seconds after which a call of the energy is given up; 0 for never.
        resume: continue the run in `out`, or start it if there is none.
    """
    if min(batch_size, evaluations, evaluation_size, final_size) < 1:
        raise ValueError("--batch_size, --evaluations, --evaluation_size and --final_size must be at least 1")
    if method == "boltzmann":
        study = _generator(target)
        if resume:
            raise ValueError("--method boltzmann cannot go on with a run; give --out a new folder")
        study(["--out", str(Path(out) if out else run_folder("energies", target)), "--seed", str(training.seed)])
        return
    known = load_target(target, space, scale)
    folder = Path(out) if out else run_folder("energies", f"{known.name}_{method}")
    config = settings(known, method, target, space, scale, training.max_steps) if sampler is None else replace(
        sampler, method=method, target=target, space=space, scale=scale
    )  # fmt: skip
    torch.manual_seed(training.seed)
    model = make(config, known, timeout=timeout)
    model.builder, model.config = BUILDER, asdict(config)
    if config.seed_calls and not (resume and (folder / "last.ckpt").is_file()):
        fill_buffer(model, known, config.seed_calls, training.seed)
    rows = _curve(folder / "curve.csv") if resume else []
    every = max(training.log_every, training.max_steps // evaluations // training.log_every * training.log_every)

    def watch(row: dict[str, Any]) -> None:
        if "loss" in row and int(row["step"]) % every == 0:
            step = int(row["step"])
            rows[:] = [old for old in rows if old["step"] < step]  # of a run that goes on from before its last row
            rows.append({"step": step, **look(known, model, evaluation_size, training.seed)})
            write_csv(folder / "curve.csv", list(rows[0]), [r.values() for r in rows])

    facts = {"command": command_line(), "target": target}
    try:
        trained = fit(model, [{"size": batch_size}], training, out=folder, resume=resume, facts=facts, callback=watch)
    except EnergyError as error:
        kept = "its last checkpoint is kept, and --resume goes on from it"
        if not (folder / "last.ckpt").is_file():
            kept = "it had saved nothing yet"
        raise type(error)(f"{error}. The run in {folder} stopped; {kept}") from None
    spent = model.energy.calls
    result = drawn(trained, final_size, training.seed + 1)
    report: dict[str, Any] = {"target": known.name, "method": method, "seed": training.seed, "training_calls": spent}
    report |= measured(known, result)
    if rows and known.log_z is not None:
        best = min(rows, key=lambda r: abs(r["off"]))
        report |= {"best_off": best["off"], "best_step": best["step"]}
    write_json(folder / "report.json", report)
    print_rows(known, [(method, report)])
    print(f"wrote {folder / 'model.safetensors'}, curve.csv and report.json; try: manifoldflow plot energies "
          f"--checkpoint {folder} --out {known.name}.png")  # fmt: skip


def sample(
    out: str,
    checkpoint: str | None = None,
    target: str | None = None,
    method: Literal["smc", "pt"] = "smc",
    num: int = 10_000,
    calls: int = 1_000_000,
    space: str | None = None,
    scale: float | None = None,
    seed: int = 0,
    timeout: float = 0.0,
) -> None:
    """Draw samples of a target with their weights, by a trained sampler or by Monte Carlo.

    Args:
        out: file to write: `.npz` with the fields, `log_weight` and `log_reward`, or `.csv`.
        checkpoint: a run folder or model file. Without one Monte Carlo runs.
        target: its name, for Monte Carlo, or for a checkpoint that was trained on an energy of yours.
        method: `smc` (tempered sequential Monte Carlo) or `pt` (parallel tempering).
        num: samples of a checkpoint.
        calls: energy calls of Monte Carlo, which decide how many samples there are.
        space, scale: of an energy of yours.
        seed: of the draws.
        timeout: seconds after which a call of the energy is given up; 0 for never.
    """
    import numpy as np

    path = Path(out)
    if path.suffix not in (".npz", ".csv"):
        raise ValueError(f"--out must end in .npz or .csv, got {out}")
    known, result, _ = obtained(checkpoint, target, method, num, calls, space, scale, seed, timeout)
    value = known.log_density(result.x).detach()
    columns = {n: v for n, v in fields(result.x).items()} | {"log_weight": result.log_weight, "log_reward": value}
    if path.suffix == ".npz":
        with atomic(path) as fresh, fresh.open("wb") as file:
            np.savez(file, **{n: v.numpy() for n, v in columns.items()})  # type: ignore[arg-type]
    else:
        flat = {n: v.reshape(len(v), -1) for n, v in columns.items()}
        names = [f"{n}{i}" if v.shape[1] > 1 else n for n, v in flat.items() for i in range(v.shape[1])]
        write_csv(path, names, torch.cat([v.double() for v in flat.values()], 1).tolist())
    print_rows(known, [(method if checkpoint is None else "sampler", measured(known, result))])
    print(f"wrote {path}")


def evaluate(
    checkpoint: str | None = None,
    target: str | None = None,
    method: Literal["smc", "pt"] = "smc",
    num: int = 10_000,
    calls: int = 1_000_000,
    seeds: str = "0",
    space: str | None = None,
    scale: float | None = None,
    timeout: float = 0.0,
    out: str | None = None,
) -> None:
    """Measure a sampler: log Z beside the exact one, effective share, modes, distance between bins, energy calls.

    Args:
        checkpoint: a run folder or model file. Without one Monte Carlo runs.
        target: its name, for Monte Carlo, or for a checkpoint that was trained on an energy of yours.
        method: `smc` or `pt`.
        num: samples of a checkpoint.
        calls: energy calls of Monte Carlo.
        seeds: such as `0-4`; a row each.
        space, scale: of an energy of yours.
        timeout: seconds after which a call of the energy is given up; 0 for never.
        out: JSON file of the rows; rows that are there already are not made again.
    """
    kept, rows = Kept(out), []
    known: Target | None = None
    for seed in seeds_of(seeds):
        what = f"{target or ''} {checkpoint or method} {num if checkpoint else calls} seed {seed}".strip()
        if what not in kept:
            known, result, spent = obtained(checkpoint, target, method, num, calls, space, scale, seed, timeout)
            kept.add(what, measured(known, result) | {"target": known.name, "training_calls": spent})
        rows.append((f"{checkpoint or method}, seed {seed}", kept.rows()[what]))
    print_rows(known, rows)
    if out:
        print(f"wrote {out}")


def plot(
    out: str,
    checkpoint: str | None = None,
    target: str | None = None,
    method: Literal["smc", "pt"] = "smc",
    num: int = 10_000,
    calls: int = 300_000,
    space: str | None = None,
    scale: float | None = None,
    seed: int = 0,
    curves: str | None = None,
) -> None:
    """Draw samples on their target, marginals, weights and energies; or curves of log Z over energy calls.

    Args:
        out: picture to write (.png, .pdf, .svg).
        checkpoint: a run folder or model file. Without one Monte Carlo runs.
        target: its name, for Monte Carlo, or for a checkpoint that was trained on an energy of yours.
        method: `smc` or `pt`.
        num: samples of a checkpoint.
        calls: energy calls of Monte Carlo.
        space, scale: of an energy of yours.
        seed: of the samples.
        curves: draw the curves of this table instead (`python -m manifoldflow.tasks.energies.study --out TABLE`).
    """
    from manifoldflow.tasks.energies.plots import curve_figure, sample_figure

    if curves is not None:
        figure = curve_figure(Kept(curves).rows())
    else:
        known, result, _ = obtained(checkpoint, target, method, num, calls, space, scale, seed, 0.0)
        figure = sample_figure(known, result)
    save_figure(figure, out)
    print(f"wrote {out}")


# ---------------------------------------------------------------- parts


def settings(
    known: Target, method: str, target: str, space: str | None, scale: float | None, steps: int
) -> SamplerConfig:
    """The target's own settings for a method, exploration over the first half of the training."""
    own = {"explore_steps": steps // 2} | known.settings.get(method, {})
    return SamplerConfig(method=method, target=target, space=space, scale=scale, **own)  # type: ignore[arg-type]


def _curve(path: Path) -> list[dict[str, Any]]:
    """The rows of a run that goes on."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: int(v) if k in ("step", "calls", "modes") else float(v) for k, v in row.items()}
                for row in csv.DictReader(file)]  # fmt: skip


def look(known: Target, model: DiffusionSampler, size: int, seed: int) -> dict[str, Any]:
    """A row of the curve; the energy calls it takes are taken off the count."""
    calls = model.energy.calls
    made = model.weighted(size, generator=generator_of(seed + 1_000_000))
    model.energy.calls = calls
    row = {"calls": calls, "log_z": made.log_z, "share": made.share, "bound": made.bound}
    if known.log_z is not None:
        row["off"] = made.log_z - known.log_z
    if known.modes is not None:
        row["modes"] = known.modes_found(made.x)
    return row


def drawn(model: DiffusionSampler, size: int, seed: int) -> Result:
    """Samples of a trained sampler with their weights."""
    before = model.energy.calls
    made = model.weighted(size, generator=generator_of(seed))
    return Result(made.x, made.log_weight, made.log_z, made.log_z_error, made.share, model.energy.calls - before, [])


def obtained(
    checkpoint: str | None,
    target: str | None,
    method: Any,
    num: int,
    calls: int,
    space: str | None,
    scale: float | None,
    seed: int,
    timeout: float,
) -> tuple[Target, Result, int | None]:
    """The target, samples of it, and the calls that training took."""
    if num < 1:
        raise ValueError(f"--num must be at least 1, got {num}")
    if checkpoint is None:
        if target is None:
            raise ValueError("which target? --target NAME for Monte Carlo, or --checkpoint RUN")
        known = load_target(target, space, scale)
        return known, run_monte_carlo(known, method, calls, seed, timeout), None
    model, path = load_model(checkpoint, BUILDER, "energy sampler")
    config = dict(model.config)
    name = target or config["target"]
    if ":" in name and target is None:
        raise ValueError(f"{path}: trained on an energy of yours; name it with --target (it was {name!r})")
    known = load_target(name, config["space"], config["scale"])
    model.energy.log_density, model.energy.timeout = known.log_density, timeout
    report = path.parent / "report.json"
    spent = json.loads(report.read_text(encoding="utf-8")).get("training_calls") if report.is_file() else None
    return known, drawn(model, num, seed), spent


def print_rows(known: Target | None, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """A table of results, a column each."""
    first = rows[0][1]
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [("log Z", lambda r: f"{r['log_z']:.4f}")]
    if known is not None and known.log_z is not None:
        lines.append(("exact log Z", lambda r: f"{known.log_z:.4f}"))
    lines.append(("off by", lambda r: f"{r['off']:+.4f}"))
    lines.append(("standard error, by weights", lambda r: f"{r['log_z_error']:.4f}"))
    lines.append(("best on the way, off by", lambda r: f"{r['best_off']:+.4f}"))
    lines.append(("effective share", lambda r: f"{r['share']:.3f}"))
    lines.append(("modes", lambda r: f"{r['modes']} of {r['modes_in_all']}"))
    lines.append(("total variation of bins", lambda r: f"{r['tv']:.4f}"))
    lines.append(("the same, weighted", lambda r: f"{r['tv_weighted']:.4f}"))
    lines.append(("of as many exact samples", lambda r: f"{r['tv_floor']:.4f}"))
    lines.append(("samples", lambda r: f"{r['samples']:,}"))
    lines.append(("their energy calls", lambda r: f"{r['calls']:,}"))
    lines.append(("energy calls of training", lambda r: f"{r['training_calls']:,}"))
    needs = {"off by": "off", "best on the way, off by": "best_off", "modes": "modes", "total variation of bins": "tv"}
    needs |= {
        "the same, weighted": "tv",
        "of as many exact samples": "tv",
        "energy calls of training": "training_calls",
    }
    shown = [(name, cell) for name, cell in lines if first.get(needs.get(name, "log_z")) is not None]
    shown = [(n, c) for n, c in shown if n != "standard error, by weights" or not math.isnan(first["log_z_error"])]
    show(["", *[name for name, _ in rows]], [[name, *[cell(r) for _, r in rows]] for name, cell in shown])


def _generator(target: str) -> Callable[..., Any]:
    """The training of a Boltzmann generator.

    Raises:
        ValueError: the target has none.
    """
    from importlib import import_module

    if target not in GENERATORS:
        raise ValueError(f"--method boltzmann is there for {', '.join(GENERATORS)}, not for {target}")
    module, _, function = GENERATORS[target].partition(":")
    return getattr(import_module(module), function)
