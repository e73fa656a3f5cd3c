"""What ``train molecules`` and ``sample molecules`` do with the flow of molecules in three dimensions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import manifoldflow as mf
from manifoldflow.tasks.molecules.conformers import Conformers, embed, join, load_conformers
from manifoldflow.tasks.molecules.flow_training import train_flow
from manifoldflow.tasks.molecules.three_d import (
    BUILDER,
    MoleculeTensors,
    ThreeDConfig,
    build,
    draw_sizes,
    sample_molecules,
    sized_batches,
    split_molecules,
    tensors_of,
)
from manifoldflow.tasks.molecules.three_d_metrics import ThreeDScores, measure
from manifoldflow.training import TrainConfig

HEAVIEST = 7
"""Heavy atoms of the largest molecules that are embedded for training."""

TRAINING = TrainConfig(
    max_steps=3000,
    learning_rate=1.5e-3,
    warmup_steps=100,
    weight_decay=0.0,
    decay=0.4,
    validate_every=500,
    checkpoint_every=200,
)
"""How flows of many steps are trained."""

FEW = TrainConfig(
    max_steps=400,
    learning_rate=5e-4,
    warmup_steps=20,
    weight_decay=0.0,
    decay=0.5,
    ema=0.98,
    validate_every=400,
    checkpoint_every=200,
)
"""How flows of few steps are."""


def training_data(files: Sequence[str], *, heaviest: int = HEAVIEST, each: int = 4, seed: int = 1) -> Conformers:
    """Molecules in three dimensions: NPZ files of conformers as they are, molecules in other files by RDKit's conformers.

    Args:
        files: ``.npz`` (as ``gdb7_3d.npz``), SMILES lists, tables or SDF.
        heaviest: most heavy atoms of a molecule that conformers are made of.
        each: conformers a molecule.
        seed: of the conformers.

    Raises:
        ValueError: nothing to train on.
    """
    from rich.progress import Progress

    from manifoldflow.tasks.molecules.chemistry import parsed
    from manifoldflow.tasks.molecules.reading import read_molecules

    parts = []
    for file in files:
        if str(file).endswith(".npz"):
            parts.append(load_conformers(file))
            continue
        smiles = [s for s in read_molecules(file).distinct if parsed(s).GetNumHeavyAtoms() <= heaviest]  # type: ignore[union-attr]
        with Progress(transient=True) as bar:
            ticked = bar.track(smiles, total=len(smiles), description=f"conformers of {file}")
            made, failed = embed(ticked, each=each, seed=seed)
        print(f"{file}: {len(made):,} conformers of {len(smiles) - len(failed):,} molecules; {len(failed):,} had none")
        parts.append(made)
    whole = join(parts) if parts else None
    if whole is None or not len(whole):
        raise ValueError("no molecules to train on: give --data an NPZ file of conformers or a file of SMILES")
    return whole


def train_three_d(
    data: Sequence[str],
    out: str,
    config: ThreeDConfig | None = None,
    training: TrainConfig = TRAINING,
    edges: int = 3500,
    resume: bool = False,
    begin: str | None = None,
) -> mf.Flow:
    """Train a flow of molecules in three dimensions; a tenth of the molecules is kept for the validation loss that chooses.

    Args:
        data: see :func:`training_data`.
        out: folder of the run.
        config: of the flow; the shares of tokens and sizes are those of the data.
        training: the optimiser and the devices.
        edges: pairs of atoms in a batch.
        resume: continue the run in ``out``.
        begin: checkpoint whose weights to begin with.
    """
    train, val = (tensors_of(part) for part in split_molecules(training_data(data)))
    return train_flow(
        lambda: build(replace(config or ThreeDConfig(), **train.shares())),
        sized_batches(train, edges, training.seed),
        lambda flow: validation_loss(flow, val),
        training,
        out=out,
        data=data,
        molecules=len(train),
        begin=begin,
        resume=resume,
        table="molecules.sdf",
    )


def train_few(
    begin: str,
    out: str,
    training: TrainConfig = FEW,
    *,
    steps: int = 8,
    count: int = 600,
    many: int = 30,
    size: int = 32,
    resume: bool = False,
) -> mf.Flow:
    """Train a flow to make in few steps what it makes in many, where that is sound (:mod:`distil`).

    Args:
        begin: checkpoint of the flow.
        out: folder of the run.
        training: the optimiser and the devices.
        steps: of the sampler that is to become good.
        count: molecules that are made to learn from.
        many: steps in which they are made.
        size: molecules in a batch.
        resume: continue the run in ``out``.
    """
    from rich.progress import Progress

    from manifoldflow.tasks.molecules.distil import make_pairs, pair_batches

    flow = mf.load(begin)
    if flow.builder != BUILDER:
        raise ValueError(
            f"--begin {begin} is no flow of molecules in three dimensions (it was built by {flow.builder})"
        )
    with Progress(transient=True) as bar:
        task = bar.add_task(f"making {count} molecules to learn from", total=count)
        generator = torch.Generator().manual_seed(training.seed)
        pairs = make_pairs(
            flow, count, steps=many, generator=generator, callback=lambda n: bar.update(task, completed=n)
        )
    print(
        f"learning from {len(pairs):,} of {count:,} molecules that {begin} made in {many} steps: those that are sound"
    )
    return train_flow(
        lambda: build(flow.config),
        pair_batches(pairs, size, steps, training.seed, flow.time_warp),
        None,
        training,
        out=out,
        data=[begin],
        molecules=len(pairs),
        begin=begin,
        resume=resume,
        table="molecules.sdf",
        options=f" --steps {steps}",
    )


def validation_loss(flow: mf.Flow, val: MoleculeTensors, most: int = 512) -> float:
    """The loss on at most so many molecules, at the same times and with the same noise every time."""
    generator, total, count = torch.Generator().manual_seed(1), 0.0, 0
    order = val.sizes.argsort()
    for rows in order[:: max(1, -(-len(val) // most))].split(128):
        t = (torch.arange(len(rows)) + 0.5) / len(rows)
        t = t[torch.randperm(len(rows), generator=generator)]
        with torch.no_grad():
            batch = val.batch(rows)
            total += float(flow.loss(batch["x"], mask=batch["mask"], t=t, generator=generator)) * len(rows)
        count += len(rows)
    return total / count


def sample_three_d(model: mf.Flow, path: Path, num: int, out: Path, seed: int, steps: int) -> None:
    """Draw molecules in three dimensions and write an SDF (or another format), a picture and a page with turning views.

    Args:
        model: the flow.
        path: its file.
        num: molecules.
        out: file to write.
        seed: of the random draws.
        steps: of the sampler.
    """
    from rich.progress import Progress

    from manifoldflow.tasks.molecules.report import draw_grid
    from manifoldflow.tasks.molecules.results import beside
    from manifoldflow.tasks.molecules.writing import write_molecules

    generator = torch.Generator().manual_seed(seed)
    with Progress(transient=True) as bar:
        task = bar.add_task(f"making {num} molecules", total=num)
        made = sample_molecules(
            model,
            draw_sizes(model, num, generator),
            steps=steps,
            generator=generator,
            callback=lambda n: bar.update(task, completed=n),
        )
        bar.update(task, description="checking")
        scores, molecules, smiles = measure(made, poses=False)
    if not molecules:
        raise ValueError(f"none of {num} molecules is whole and allowed by RDKit: train longer, or take more --steps")
    names = [f"{i:05d}" for i in range(1, len(molecules) + 1)]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_molecules(out, smiles, names=names, mols=molecules)
    drawn, told = beside(out)
    picture = draw_grid(out.parent / drawn, smiles[:30], names[:30])
    page = write_page(
        out.parent / told,
        molecules,
        smiles,
        scores,
        {"model": str(path), "steps": str(steps), "seed": str(seed)},
    )
    print(
        f"wrote {len(molecules):,} of {num:,} molecules (those in one piece that RDKit allows; {scores.unique:,} different) "
        f"to {out}; picture: {picture}; page: {page}"
    )


def write_page(
    path: Path, molecules: Sequence[Any], smiles: Sequence[str], scores: ThreeDScores, facts: dict[str, str]
) -> Path:
    """A page of the molecules as they were made, in views that turn."""
    from manifoldflow.tasks.common import report
    from manifoldflow.tasks.common.viewer import Scene
    from manifoldflow.tasks.molecules.chemistry import rdkit

    allowed, whole = scores.atoms_stable / max(1, scores.atoms), scores.sound / max(1, scores.total)
    chips = [
        ("molecules", f"{scores.total:,}"),
        ("atoms with allowed valence", f"{100 * allowed:.1f} %"),
        ("whole and allowed", f"{100 * whole:.1f} %"),
        ("different", f"{scores.unique:,}"),
    ]
    page = report.Report("Molecules in three dimensions", chips=chips)
    page.card("What was done", report.facts(facts))
    scenes = [
        Scene(rdkit().MolToMolBlock(m) + "$$$$\n", "sdf", caption=s)
        for m, s in list(zip(molecules, smiles, strict=True))[:24]
    ]
    page.card(
        "As the model made them",
        page.grid(scenes),
        note="Atoms, places, charges and bonds are the model's own. Drag to turn.",
    )
    return page.write(path)
