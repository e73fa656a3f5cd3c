"""Set generation: how many states until the best sets are found, and is log Z right?

    OMP_NUM_THREADS=1 python benchmarks/gflownet_sets.py

The tasks of Pan et al. (2023): 20 of 30, 60 of 80, 80 of 100 items with given energies. The reward is R^beta (``--beta``),
without which the law R/Z itself hardly ever makes one of the best sets; all is said of R. MLP 2 x 256, Adam 1e-3 (log Z: 0.1),
batch 16. Trajectory balance begins with the log Z of its first batch, else it would first have to climb there. Written: the
states visited until the mean of the best 100 different sets seen is 99 % of the exact one, that mean at the end, learned and
exact log Z.
Without learning: exact samples of the law R^beta (what a perfect learner would see, so the most that an exponent allows), random
sets, and a genetic algorithm (64 parents of the best, exchange of one to three items), same states; a greedy choice of the items
with the least energy is exact here by construction.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import manifoldflow as mf
from manifoldflow import gflownet as gf

METHODS = {
    "TB": {"loss": gf.trajectory_balance},
    "DB": {"loss": gf.detailed_balance, "flows": True},
    "FL-DB": {"loss": gf.detailed_balance, "forward_looking": True},
    "FL-SubTB(0.9)": {"loss": gf.subtrajectory_balance(0.9), "forward_looking": True},
    "FL-DB, pieces of a quarter": {"loss": gf.detailed_balance, "forward_looking": True, "pieces": -1},
}
SIZES = ("small", "medium", "large")


class Units(torch.nn.Module):
    """A network whose last output, the log-flow, is in units: it is of the order of log Z, which is hundreds."""

    def __init__(self, network: torch.nn.Module, unit: float) -> None:
        super().__init__()
        self.network, self.unit = network, unit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.network(x)
        return torch.cat([made[..., :-1], self.unit * made[..., -1:]], -1)


class Best:
    """The best 100 different sets seen."""

    def __init__(self, plain: gf.ItemSets) -> None:
        self.env, self.store = plain, gf.Replay(100, kind="top", start=1)
        self.optimum = float(plain.best(100).mean())

    def __call__(self, x: torch.Tensor) -> float:
        """The mean after more sets, as a share of the optimum."""
        self.store.add(x, self.env.log_reward(x).double(), None, self.env.key(x))
        return float(self.store.log_reward.exp().mean()) / self.optimum if len(self.store) >= 100 else 0.0


def learned(
    name: str, plain: gf.ItemSets, beta: float, most: int, seconds: float, epsilon: float, rate: float, seed: int
) -> str:
    torch.manual_seed(seed)
    env = gf.ItemSets(plain.energy * beta, plain.size)
    options: dict[str, Any] = dict(METHODS[name])
    if "pieces" in options:
        options["pieces"] = env.size // 4
    flows = "flows" in options or "forward_looking" in options
    network: torch.nn.Module = gf.Mlp(env.observed, env.actions + flows, 256)
    model = mf.GFlowNet(env, Units(network, beta) if flows else network, epsilon=epsilon, **options)
    with torch.no_grad():  # else log Z would first have to climb there
        model.pieces, pieces = None, model.pieces
        model.log_z.copy_(-gf.losses.gap(model.scores(model.draw(16))).mean())
        model.pieces = pieces
    optimizer = torch.optim.Adam(
        [{"params": model.policy.parameters(), "lr": rate}, {"params": [model.log_z], "lr": 0.0125 * beta}]
    )
    base = [group["lr"] for group in optimizer.param_groups]
    best, began, reached, share, states = Best(plain), time.process_time(), None, 0.0, 0
    for step in range(most):
        done = max(step / most, (time.process_time() - began) / seconds)
        if done >= 1:
            break
        for group, full in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = full * min(1.0, 2 * (1 - done) + 1e-3)
        model.noise = (epsilon * max(1 - 2 * done, 0.0),) * 2 + (1,)
        with torch.no_grad():
            model.pieces, pieces = None, model.pieces
            drawn = model.draw(16)
            model.pieces = pieces
            share = best(drawn.end)
            made = drawn if pieces is None else model._piece(drawn, pieces, None)
        value = sum(model.loss_of(made).values())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        states += 16 * env.size
        if reached is None and share >= 0.99:
            reached = states
    z = f"{float(model.log_z.detach()):.2f} ({env.log_z:.2f})"
    return f"{f'{reached:,}' if reached else '-'} | {100 * share:.2f} | {z} | {states:,} | {time.process_time() - began:.0f}"


def searched(propose: Callable[[Best, torch.Generator], torch.Tensor], plain: gf.ItemSets, states: int) -> str:
    best, generator, share, reached, seen = Best(plain), torch.Generator().manual_seed(0), 0.0, None, 0
    while seen < states:
        x = propose(best, generator)
        share = best(x)
        seen += len(x) * plain.size
        if share >= 0.99 and reached is None:
            reached = seen
            break
    return f"{f'{reached:,}' if reached else '-'} | {100 * share:.2f} | - | {seen:,} | -"


def at_random(plain: gf.ItemSets, count: int, generator: torch.Generator) -> torch.Tensor:
    rank = torch.rand(count, plain.actions, generator=generator).argsort(-1).argsort(-1)
    return rank < plain.size


def genetic(best: Best, generator: torch.Generator) -> torch.Tensor:
    """Children of the best sets so far, with one to three items exchanged."""
    if len(best.store) < 100:
        return at_random(best.env, 128, generator)
    parents = best.store.states[torch.randint(64, (64,), generator=generator)]
    swaps = torch.randint(1, 4, (64, 1), generator=generator)
    u = torch.rand(parents.shape, generator=generator)
    out = torch.where(parents, u, 2.0).argsort(-1).argsort(-1) < swaps
    into = torch.where(parents, 2.0, u).argsort(-1).argsort(-1) < swaps
    return (parents & ~out) | into


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="small,medium,large")
    parser.add_argument("--beta", type=float, default=8.0)
    parser.add_argument("--methods", default=";".join(METHODS))
    parser.add_argument("--seconds", type=float, default=30.0, help="most processor seconds of a row")
    parser.add_argument("--most", type=int, default=2000, help="most steps of a row")
    parser.add_argument("--states", type=int, default=0, help="states of the rows without learning; as the steps if 0")
    parser.add_argument(
        "--epsilon", type=float, default=0.05, help="even exploration at first; 0 from half of the steps on"
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the policy")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    methods = [name.strip() for name in given.methods.split(";") if name.strip()]
    unknown = [name for name in methods if name not in METHODS] + [
        name for name in given.sizes.split(",") if name not in SIZES
    ]
    if unknown:
        parser.error(f"no {unknown[0]!r}: --methods are {'; '.join(METHODS)} and --sizes are {', '.join(SIZES)}")
    torch.set_num_threads(1)
    print(
        "| task | beta | method | states to 99 % | best 100, % of optimum | log Z (exact) | states in all | processor s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in given.sizes.split(","):
        plain = gf.ItemSets.standard(size)  # type: ignore[arg-type]
        for name in methods:
            row = learned(name, plain, given.beta, given.most, given.seconds, given.epsilon, given.rate, given.seed)
            print(f"| {size} | {given.beta:g} | {name} | {row} |", flush=True)
        states = given.states or 16 * given.most * plain.size
        tilted = gf.ItemSets(plain.energy * given.beta, plain.size)
        row = searched(lambda b, g, law=tilted: law.exact(512, generator=g), plain, states)
        print(f"| {size} | {given.beta:g} | exact samples of the law | {row} |", flush=True)
        print(
            f"| {size} | - | random sets | {searched(lambda b, g, p=plain: at_random(p, 128, g), plain, states)} |",
            flush=True,
        )
        print(f"| {size} | - | genetic | {searched(genetic, plain, states)} |", flush=True)


if __name__ == "__main__":
    main()
