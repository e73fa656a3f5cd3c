"""``manifoldflow sample molecules``: draw molecules from a checkpoint."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import manifoldflow as mf
from manifoldflow.checkpoint import find_checkpoint
from manifoldflow.tasks.common.tables import plural
from manifoldflow.tasks.molecules import SAMPLERS
from manifoldflow.tasks.molecules.design import DEFAULT_CHECKPOINT, environment, rewarded
from manifoldflow.tasks.molecules.results import write_results
from manifoldflow.tasks.molecules.writing import check_format


def sample(
    checkpoint: str = DEFAULT_CHECKPOINT,
    num: int = 100,
    out: str = "molecules.csv",
    seed: int = 0,
    steps: int = 100,
    reward: str | None = None,
) -> None:
    """Draw molecules from a checkpoint, and write them with a picture and a page.

    Args:
        checkpoint: an embedded model by name, a model file, or a run folder.
        num: number of molecules.
        out: file to write: .csv, .smi or .sdf; picture and page lie beside it by its name.
        seed: of the random draws; the same seed gives the same molecules.
        steps: of a flow; a GFlowNet of fragments needs none.
        reward: that molecules of fragments are scored and sorted by; the model's own by default. A function of yours that the
            model was trained on (mine.py:score) must be named: no function runs because a file says so.
    """
    if num < 1 or steps < 1:
        raise ValueError(f"--num and --steps must be at least 1, got {num} and {steps}")
    check_format(out)
    path = find_checkpoint(checkpoint)
    model = mf.load(path)
    if model.builder not in SAMPLERS:
        raise ValueError(f"{path} generates no molecules (it was built by {model.builder})")
    model = rewarded(model, path, reward)
    module, _, name = SAMPLERS[model.builder].partition(":")
    getattr(import_module(module), name)(model, path, num, Path(out), seed, steps)


def sample_fragments(model: Any, path: Path, num: int, out: Path, seed: int, steps: int) -> None:
    """Molecules of a GFlowNet of fragments, or of atoms."""
    from manifoldflow.tasks.molecules.rewards import Objective

    env, config = environment(model), model.config
    generator = torch.Generator().manual_seed(seed)
    smiles: list[str] = []
    with Progress(transient=True) as bar:
        task = bar.add_task(f"building {num} molecules", total=num)
        while len(smiles) < num:
            smiles += env.to_smiles(model.sample(min(256, num - len(smiles)), generator=generator))
            bar.update(task, completed=len(smiles))
        bar.update(task, description="scoring and drawing")
        objective = Objective(config["reward"], config["lead"])
        values = torch.stack(
            [torch.as_tensor(objective.function(i)(smiles), dtype=torch.float64) for i in range(len(objective))], -1
        )
        order = values.clamp_min(1e-12).log().sum(-1).argsort(descending=True, stable=True)
        facts = {
            "model": str(path),
            "reward": f"{config['reward']}, to the power {config['exponent']:g}",
            "molecules": f"{num:,}, {len(set(smiles)):,} different",
            "mean reward": f"{float(values[:, 0].mean()):.3f}",
        }
        ranked = [smiles[i] for i in order.tolist()]
        _, picture, page = write_results(
            out,
            out.parent,
            ranked,
            values[order],
            objective.names,
            title=f"Molecules of {config.get('environment', 'fragments')}",
            facts=facts,
            seed=seed,
        )
    print(f"wrote {plural(num, 'molecule')} ({len(set(smiles)):,} different, mean {config['reward']} "
          f"{float(values[:, 0].mean()):.3f}) to {out}; picture: {picture}; page: {page}")  # fmt: skip
