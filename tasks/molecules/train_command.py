"""``manifoldflow train molecules``: a GFlowNet of fragments on a reward."""

from pathlib import Path
from typing import Any, Literal

from manifoldflow.tasks.common.runs import command_line, run_folder
from manifoldflow.tasks.molecules.design import FragmentConfig
from manifoldflow.tasks.molecules.oracle import Oracle
from manifoldflow.tasks.molecules.rewards import Objective
from manifoldflow.tasks.molecules.search import TRAINING, learn
from manifoldflow.training import TrainConfig

MODEL = FragmentConfig()

Family = Literal["fragments", "graphs", "gdss", "3d", "few"]
"""What a model is made of."""


def train(
    out: str | None = None,
    model: FragmentConfig = MODEL,
    training: TrainConfig = TRAINING,
    steps: int = 1000,
    calls: int | None = None,
    batch_size: int = 32,
    timeout: float | None = None,
    bad: Literal["raise", "floor"] = "raise",
    resume: bool = False,
    family: Family = "fragments",
    data: list[str] | None = None,
    begin: str | None = None,
) -> None:
    """Train a GFlowNet of fragments on a reward; or with `--family` a flow of molecular graphs, or of molecules in 3D.

    Args:
        out: folder of the run; `runs/molecules/REWARD` by default.
        model: the environment (fragments, or atoms) and its vocabulary, the reward and its exponent, the loss, the network.
        training: the optimiser and the devices.
        steps: batches to learn from.
        calls: most molecules whose reward is asked for; no end by default.
        batch_size: trajectories in a batch.
        timeout: seconds that the reward may take for a batch.
        bad: a reward that fails, is NaN or late ends the run, or counts as the least.
        resume: continue the run in `out`, or start it if there is none.
        family: `fragments`; `graphs` (tokens of atoms and bonds) or `gdss` (their diffusion) of molecules of at most nine heavy
            atoms; or `3d`, with positions. Those three learn from `data`, so of the other options only `out`, `steps`,
            `training`, `resume` and `begin` are for them. `few` makes a flow in three dimensions, `begin`, good at 8 steps.
        data: files of molecules, for `graphs`, `gdss` and `3d` (which also takes NPZ files of conformers).
        begin: checkpoint whose weights to begin with, for `graphs`, `gdss` and `3d`: to go on with molecules of your own.
    """
    from dataclasses import replace

    if batch_size < 2 or steps < 1:
        raise ValueError(f"--batch_size must be at least 2 and --steps at least 1, got {batch_size} and {steps}")
    if family != "fragments":
        return train_family(
            family, data or [], out or str(run_folder("molecules", family)), training, steps, resume, begin
        )
    if data or begin:
        raise ValueError(
            f"--{'data' if data else 'begin'} is for --family graphs, gdss and 3d; fragments learn from their reward"
        )
    folder = Path(out) if out else run_folder("molecules", model.reward)
    objective = Objective(model.reward, model.lead)
    started = begun(folder, resume)
    oracle = Oracle(objective, calls, folder, timeout=timeout, bad=bad)
    facts: dict[str, Any] = {"command": command_line(), "reward": model.reward}
    learn(
        model,
        oracle,
        replace(training, max_steps=steps),
        out=folder,
        batch_size=batch_size,
        resume=started,
        facts=facts,
    )
    found = oracle.answers()
    best = float(found.reward.max()) if len(found.smiles) else 0.0
    file = folder / "model.safetensors"
    print(f"asked for {oracle.used:,} rewards, the best {best:.3f}; wrote {file}")
    print(f"try: manifoldflow sample molecules --checkpoint {folder}")


def begun(folder: Path, resume: bool) -> bool:
    """Whether a run goes on.

    Raises:
        FileExistsError: the folder holds one, and ``resume`` is off.
    """
    there = (folder / "objective.json").exists()
    if there and not resume:
        raise FileExistsError(f"{folder} holds a run already; continue it with --resume, or choose another --out")
    return resume and (folder / "last.ckpt").exists()


def train_family(
    family: Family, data: list[str], out: str, training: TrainConfig, steps: int, resume: bool, begin: str | None
) -> None:
    """Train a flow of graphs or of molecules in three dimensions.

    Raises:
        ValueError: no data.
    """
    from manifoldflow.tasks.molecules import graph_command, three_d_command
    from manifoldflow.tasks.molecules.flow_training import with_given
    from manifoldflow.tasks.molecules.graphs import GraphConfig

    if family == "few":
        if begin is None or data:
            raise ValueError(
                "--family few learns from what a flow in three dimensions makes: --begin molecules_3d, no --data"
            )
        own = with_given(three_d_command.FEW, training, TRAINING, steps)
        three_d_command.train_few(begin, out, own, resume=resume)
        return
    if not data:
        raise ValueError(
            f"--family {family} learns from molecules: say where they are with --data, such as --data [qm9.smi]"
        )
    if family == "3d":
        own = with_given(three_d_command.TRAINING, training, TRAINING, steps)
        three_d_command.train_three_d(data, out, training=own, resume=resume, begin=begin)
        return
    config = GraphConfig(method="jumps" if family == "graphs" else "gdss")
    own = with_given(graph_command.TRAINING, training, TRAINING, steps)
    graph_command.train_graphs(data, out, config, own, resume=resume, begin=begin)
