"""Training of the molecular flows, of graphs and in three dimensions: what is the same for both."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import manifoldflow as mf
from manifoldflow.tasks.common.runs import command_line
from manifoldflow.training import TrainConfig, fit


def train_flow(
    make: Callable[[], mf.Flow],
    batches: Any,
    score: Callable[[mf.Flow], float] | None,
    training: TrainConfig,
    *,
    out: str,
    data: Sequence[str],
    molecules: int,
    begin: str | None = None,
    resume: bool = False,
    table: str = "molecules.csv",
    options: str = "",
) -> mf.Flow:
    """Train a flow, keep the weights of the best score, and say what to do next.

    Args:
        make: the flow, untrained; its weights are those of ``training.seed``.
        batches: for :func:`manifoldflow.training.fit`.
        score: of a flow, the lower the better; None to keep the last weights.
        training: the optimiser and the devices.
        out: folder of the run.
        data, molecules: files and number of molecules, for the checkpoint.
        begin: checkpoint whose weights to begin with.
        resume: continue the run in ``out``.
        table, options: file that the next command writes, and what else it takes.
    """
    torch.manual_seed(training.seed)
    flow = make()
    if begin is not None:
        begin_with(flow, begin)
    facts: dict[str, Any] = {"command": command_line(), "molecules": molecules, "data": [Path(f).name for f in data]}
    if begin is not None:
        facts["begin"] = begin
    made = fit(flow, batches, training, out=out, score=score, resume=resume, facts=facts)
    print(
        f"wrote {out}/model.safetensors; try: manifoldflow sample molecules --checkpoint {out}{options} --out {table}"
    )
    return made


def begin_with(flow: mf.Flow, checkpoint: str) -> None:
    """Give a flow the weights of a checkpoint.

    Raises:
        ValueError: it holds another kind of model, or a network of another size.
    """
    known = mf.load(checkpoint)
    if known.builder != flow.builder:
        raise ValueError(f"--begin {checkpoint} was built by {known.builder}, not by {flow.builder}")
    ours, theirs = flow.state_dict(), known.state_dict()
    if {n: v.shape for n, v in ours.items()} != {n: v.shape for n, v in theirs.items()}:
        raise ValueError(f"--begin {checkpoint} holds a network of another size; train without, or with its settings")
    flow.load_state_dict(theirs)


def with_given(own: TrainConfig, given: TrainConfig, usual: TrainConfig, steps: int) -> TrainConfig:
    """The settings of a family, with what was asked for: what ``given`` has other than ``usual``, and the number of steps."""
    asked = {n: v for n, v in vars(given).items() if v != getattr(usual, n)}
    return replace(own, **(asked | {"max_steps": steps}))
