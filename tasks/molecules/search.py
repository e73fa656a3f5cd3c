"""Searches for molecules under a budget: a GFlowNet that learns as it asks, or a baseline, all with the same oracle."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from manifoldflow.gflownet.reward import BudgetSpent
from manifoldflow.tasks.molecules.baselines import Advance, genetic, local_search, random_search
from manifoldflow.tasks.molecules.design import CROSSOVER, FragmentConfig, build, environment, make_env, set_log_z
from manifoldflow.tasks.molecules.oracle import Oracle
from manifoldflow.training import TrainConfig, fit

Method = Literal["gflownet", "genetic", "local", "random"]

TRAINING = TrainConfig(
    max_steps=100_000,
    learning_rate=3e-3,
    weight_decay=0.0,
    betas=(0.9, 0.999),
    warmup_steps=10,
    schedule="constant",
    gradient_clip=10.0,
    ema=0.0,
    precision="32-true",
    validate_every=1_000_000,
    checkpoint_every=25,
    log_every=5,
    accelerator="cpu",
)
"""Of a policy that learns while it asks. The number of steps follows from the budget."""


def learn(
    config: FragmentConfig,
    oracle: Oracle,
    training: TrainConfig = TRAINING,
    *,
    out: str | Path | None = None,
    batch_size: int = 32,
    resume: bool = False,
    facts: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> Any:
    """Train a GFlowNet of fragments until the budget is spent, and return it.

    A batch is made of fresh molecules and of those seen before, by ``config.replay``; only fresh ones that are new are asked for.
    What the budget has left when the steps are done is spent on molecules of the trained policy.

    Args:
        config: the model.
        oracle: what is asked; its budget ends the run.
        training: ``max_steps`` is lowered to what the budget feeds.
        out: folder of the run; None for none.
        batch_size: trajectories of a step.
        resume: go on with the run in ``out``. Its answers are known already, and its draws come again as they were.
        facts: kept in the checkpoint.
        callback: called with every row of the curve.
    """
    from dataclasses import replace

    torch.manual_seed(training.seed)
    model = build(config)
    env = environment(model)
    env.reward = oracle.rewards
    fresh = max(1, batch_size - round(batch_size * config.replay)) * (1 + (model.local_search is not None))
    if oracle.calls is not None:
        training = replace(training, max_steps=max(1, min(training.max_steps, oracle.calls // fresh)))
    try:
        if not resume and model.partition is None:
            set_log_z(model, batch_size, torch.Generator().manual_seed(training.seed))
        model = fit(
            model, [{"size": batch_size}], training, out=out, resume=resume, facts=facts, callback=callback
        )  # fmt: skip
    except BudgetSpent:
        pass  # the weights are those of the last step
    model.eval()
    spend(model, oracle, training.seed)
    return model


def spend(model: Any, oracle: Oracle, seed: int = 0, size: int = 64, fruitless: int = 20) -> None:
    """Ask for molecules of the policy until the budget is spent, or so many batches in a row held nothing new."""
    env = environment(model)
    generator = torch.Generator().manual_seed(seed + 1)
    idle = 0
    while oracle.left and idle < fruitless:
        before = len(oracle.met)
        oracle.ask(env.to_smiles(model.sample(size, generator=generator)))
        idle = 0 if len(oracle.met) > before else idle + 1


def search(
    method: Method,
    config: FragmentConfig,
    oracle: Oracle,
    *,
    seed: int = 0,
    advance: Advance | None = None,
) -> None:
    """A search without learning, on the same environment."""
    env = make_env(config)
    env.reward = oracle.rewards
    ways: dict[str, Any] = {
        "genetic": partial(genetic, crossover=CROSSOVER[config.environment]),
        "local": local_search,
        "random": random_search,
    }
    ways[method](env, oracle, seed, advance=advance)
