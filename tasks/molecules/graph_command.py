"""What ``train molecules`` and ``sample molecules`` do with models of molecular graphs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import manifoldflow as mf
from manifoldflow.tasks.molecules.flow_training import train_flow
from manifoldflow.tasks.molecules.graphs import (
    GraphConfig,
    GraphSet,
    build,
    draw_sizes,
    graph_batches,
    graphs_of,
    measure,
    sample_graphs,
)
from manifoldflow.training import TrainConfig

TRAINING = TrainConfig(
    max_steps=3000,
    learning_rate=2e-3,
    warmup_steps=100,
    weight_decay=0.0,
    decay=0.4,
    validate_every=500,
    checkpoint_every=250,
)
"""How the graph models of the tables were trained, but for the number of steps."""

TEMPERATURE, CORRECTOR = 0.9, 1.0
"""Of the tokens (:class:`manifoldflow.Jumps`), chosen on 200 molecules of another seed than those of the tables."""


def train_graphs(
    data: Sequence[str],
    out: str,
    config: GraphConfig | None = None,
    training: TrainConfig = TRAINING,
    batch_size: int = 128,
    resume: bool = False,
    begin: str | None = None,
) -> mf.Flow:
    """Train a model of molecular graphs; a tenth of the molecules is kept for the validation loss that chooses.

    Args:
        data: files of molecules.
        out: folder of the run.
        config: of the model; shares of tokens and sizes are those of the data.
        training: the optimiser and the devices.
        batch_size: molecules in a batch.
        resume: continue the run in ``out``.
        begin: checkpoint whose weights to begin with.

    Raises:
        ValueError: no molecule of at most nine atoms of the kinds that have tokens.
    """
    from manifoldflow.tasks.molecules.reading import read_molecules

    where = ", ".join(map(str, data))
    graphs, failed = graphs_of([s for file in data for s in read_molecules(file).distinct])
    if len(graphs) < 20:
        raise ValueError(f"{where}: {len(graphs)} molecules of at most 9 atoms C, N, O, F; training needs at least 20")
    if failed:
        print(f"{where}: {len(failed):,} molecules left out: more than 9 heavy atoms, or others than C, N, O, F")
    held = torch.arange(len(graphs)) % 10 == 9
    train, val = graphs.rows((~held).nonzero().squeeze(1)), graphs.rows(held.nonzero().squeeze(1))
    config = replace(config or GraphConfig(), **train.shares())
    return train_flow(
        lambda: build(config),
        graph_batches(train, config, batch_size, training.seed),
        lambda flow: validation_loss(flow, val, config),
        training,
        out=out,
        data=data,
        molecules=len(train),
        begin=begin,
        resume=resume,
    )


def validation_loss(flow: mf.Flow, val: GraphSet, config: GraphConfig, most: int = 1024) -> float:
    """The loss on at most so many graphs, at the same times and with the same noise every time."""
    generator, rows = torch.Generator().manual_seed(1), torch.arange(min(most, len(val)))
    batch = val.batch(rows, config)
    t = (torch.randperm(len(rows), generator=generator) + 0.5) / len(rows)
    with torch.no_grad():
        return float(flow.loss(batch["x"], mask=batch["mask"], t=t, generator=generator))


def sample_molecular_graphs(model: mf.Flow, path: Path, num: int, out: Path, seed: int, steps: int) -> None:
    """Draw molecules as graphs and write a table (or SMILES, SDF), a picture and a page.

    Args:
        model: from :func:`graphs.build`.
        path: its file.
        num: molecules.
        out: file to write.
        seed: of the random draws.
        steps: of the sampler.

    Raises:
        ValueError: a model of generic graphs.
    """
    from rich.progress import Progress

    from manifoldflow.tasks.molecules.report import draw_grid, write_report
    from manifoldflow.tasks.molecules.results import beside
    from manifoldflow.tasks.molecules.writing import write_molecules

    config = GraphConfig(**(model.config or {}))
    if config.kind != "molecules":
        raise ValueError(
            f"{path} makes generic graphs, not molecules; draw them with manifoldflow.tasks.molecules.graphs.sample_graphs"
        )
    generator = torch.Generator().manual_seed(seed)
    with Progress(transient=True) as bar:
        task = bar.add_task(f"making {num} molecules", total=num)
        sizes: Sequence[int] = draw_sizes(config.sizes, num, generator)
        made = sample_graphs(
            model,
            sizes,
            steps=steps,
            temperature=TEMPERATURE,
            corrector=CORRECTOR,
            generator=generator,
            callback=lambda n: bar.update(task, completed=n),
        )
        scores, smiles = measure(made)
    if not smiles:
        raise ValueError(f"none of {num} molecules is whole and allowed by RDKit: train longer, or take more --steps")
    names = [f"{i:05d}" for i in range(1, len(smiles) + 1)]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_molecules(out, smiles, names=names, seed=seed)
    drawn, told = beside(out)
    picture = draw_grid(out.parent / drawn, smiles[:30], names[:30])
    facts = {
        "model": f"{path} ({'tokens that jump' if config.method == 'jumps' else 'two stochastic equations'})",
        "allowed by RDKit without correction": f"{scores.valid:,} of {num:,}",
        "in one piece": f"{scores.whole:,}",
        "different": f"{scores.unique:,}",
    }
    page = write_report(out.parent / told, "Molecules as graphs", smiles[:30], names[:30], facts=facts, seed=seed)
    print(
        f"wrote {len(smiles):,} of {num:,} molecules (those in one piece that RDKit allows; {scores.unique:,} different) "
        f"to {out}; picture: {picture}; page: {page}"
    )
