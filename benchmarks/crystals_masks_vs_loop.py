"""What a padded batch of crystals costs: against a loop over crystals, over the bare network, against simulating Bayesian chains.

Random weights, random crystals, CPU time of one thread, candidates alternate. A batch of 256 cells of 20 atoms: one training
step of the flow with a mask, against a loop with one flow of its own spaces per crystal (a sixteenth of the batch, times 16).
Sampling: 20 steps of 64 cells against 20 calls of the network on the same states. Bayesian training: a step with beliefs from
the bank against a step whose 1,000 observations are simulated one by one.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks._bench import OURS, Report, Row, run


def seconds(*calls: Callable[[], Any], rounds: int = 3) -> list[float]:
    """Least CPU seconds of each call; they take turns."""
    least = [float("inf")] * len(calls)
    for number in range(rounds + 1):
        for i, call in enumerate(calls):
            start = time.process_time()
            call()
            if number:
                least[i] = min(least[i], time.process_time() - start)
    return least


def crystals(batch: int, atoms: int) -> tuple[dict[str, Tensor], Tensor]:
    """A state of random crystals, and its mask."""
    g = torch.Generator().manual_seed(0)
    root = torch.eye(3) * 2.2 + 0.2 * torch.randn(batch, 3, 3, generator=g)
    state = {
        "species": torch.randint(103, (batch, atoms), generator=g),
        "frac": torch.rand(batch, atoms, 3, generator=g),
        "lattice": root @ root.mT,
    }
    return state, torch.ones(batch, atoms, dtype=torch.bool)


def train_step(flow: Any, state: dict[str, Tensor], mask: Tensor) -> None:
    flow.zero_grad()
    flow.loss(state, mask=mask).backward()


def body(report: Report, budget: float) -> None:
    from manifoldflow.tasks.crystals.flow import CrystalConfig, build

    torch.set_num_threads(1)
    torch.manual_seed(0)
    flow = build(CrystalConfig())
    state, mask = crystals(256, 20)

    def looped() -> None:
        flow.zero_grad()
        for i in range(16):
            one = build_one(flow)
            one.loss({n: v[i : i + 1] for n, v in state.items()}, mask=mask[i : i + 1]).backward()

    whole, loop = seconds(lambda: train_step(flow, state, mask), looped, rounds=1)
    times = {OURS: whole, "loop over crystals": 16 * loop}
    ratio = times["loop over crystals"] / whole
    report.add(Row("training step, 256 cells of 20 atoms", times, dict(times), {}, ratio, ">= 3.00", ratio >= 3))

    flow.eval()
    few, real = {n: v[:64] for n, v in state.items()}, mask[:64]
    known = {"species": few["species"]}
    when = {n: torch.full((64,), 0.5) for n in few} | {"species": torch.ones(64, 20)}

    def sampled() -> None:
        flow.sample((64, 20), mask=real, known=known, steps=20)

    def called() -> None:
        with torch.no_grad():
            for _ in range(20):
                flow.model(few, when, mask=real)

    ours, bare = seconds(sampled, called)
    times = {OURS: ours, "bare network": bare}
    report.add(
        Row(
            "20 steps of sampling, 64 cells of 20 atoms",
            times,
            dict(times),
            {},
            bare / ours,
            ">= 0.91",
            bare / ours >= 1 / 1.1,
        )
    )

    bayes = build(CrystalConfig(method="bayesian"))
    small, all_real = crystals(64, 5)
    path = bayes.path["frac"]
    alphas = path.accuracies()

    def simulated() -> None:
        """The belief at each crystal's time, by its observations one after another, then the same step."""
        t = torch.rand(64)
        total = torch.zeros(64, 5, 3, 2)
        angle = 2 * torch.pi * small["frac"]
        for k, alpha in enumerate(alphas.tolist()):
            made = torch.distributions.VonMises(angle, torch.tensor(alpha)).sample()
            seen = (t * len(alphas) > k).float()[:, None, None]
            total = total + (alpha * seen).unsqueeze(-1) * torch.stack([made.cos(), made.sin()], -1)
        path.belief(total)
        train_step(bayes, small, all_real)

    ours, chain = seconds(lambda: train_step(bayes, small, all_real), simulated, rounds=1)
    times = {OURS: ours, "simulating the chain": chain}
    report.add(
        Row(
            "Bayesian training step, 64 cells of 5 atoms",
            times,
            dict(times),
            {},
            chain / ours,
            ">= 5.00",
            chain / ours >= 5,
        )
    )


def build_one(flow: Any) -> Any:
    """A flow with spaces of its own and the same network."""
    import manifoldflow as mf
    from manifoldflow.tasks.crystals.couplings import AtomOT
    from manifoldflow.tasks.crystals.flow import CLOCKS, GivenSpecies

    return mf.Flow(
        dict(flow.fields),
        flow.model,
        source={"frac": mf.Uniform(), "lattice": flow.source["lattice"]},
        path={"species": mf.Masking()},
        coupling=AtomOT(),
        pin=GivenSpecies(1.0),
        clocks=CLOCKS,
    )


if __name__ == "__main__":
    run(__doc__.splitlines()[0], body)
