"""Set generation: how many states until the best sets are found, and is log Z right?

    OMP_NUM_THREADS=1 python benchmarks/gflownet_sets.py

The tasks of Pan et al. (2023): 20 of 30, 60 of 80, 80 of 100 items with given energies. The reward is R^beta (``--beta``),
without which the law R/Z itself hardly ever makes one of the best sets; all is said of R. MLP 2 x 256, Adam 1e-3 (log Z: 0.1),
batch 16. Trajectory balance begins with the log Z of its first batch, else it would first have to climb there. Written: the
states visited until the mean of the best 100 different sets seen is 99 % of the exact one, that mean at the end, learned and
exact log Z.
Without learning: random sets, and a genetic algorithm (64 parents of the best, exchange of one to three items), same states; a
greedy choice of the items with the least energy is exact here by construction.
"""

import argparse
import time
from collections.abc import Callable

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


class Best:
    """The best 100 different sets seen."""

    def __init__(self, plain: gf.ItemSets) -> None:
        self.env, self.store = plain, gf.Replay(100, kind="top", start=1)
        self.optimum = float(plain.best(100).mean())

    def __call__(self, x: torch.Tensor) -> float:
        """The mean after more sets, as a share of the optimum."""
        self.store.add(x, self.env.log_reward(x).double(), None, self.env.key(x))
        return float(self.store.log_reward.exp().mean()) / self.optimum if len(self.store) >= 100 else 0.0


def learned(name: str, plain: gf.ItemSets, beta: float, most: int, seconds: float, epsilon: float) -> str:
    torch.manual_seed(0)
    env = gf.ItemSets(plain.energy * beta, plain.size)
    options = dict(METHODS[name])
    if "pieces" in options:
        options["pieces"] = env.size // 4
    flows = "flows" in options or "forward_looking" in options
    model = mf.GFlowNet(env, gf.Mlp(env.observed, env.actions + flows, 256), epsilon=epsilon, **options)
    if not flows:
        first = model.scores(model.draw(16))
        model.log_z.data.copy_(-(gf.losses.gap(first)).mean())
    optimizer = torch.optim.Adam(
        [{"params": model.policy.parameters(), "lr": 1e-3}, {"params": [model.log_z], "lr": 0.1}]
    )
    best, began, reached, share, states = Best(plain), time.process_time(), None, 0.0, 0
    for step in range(most):
        model.noise = (epsilon * max(1 - 2 * step / most, 0.0),) * 2 + (1,)
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
        if time.process_time() - began > seconds:
            break
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
    parser.add_argument("--epsilon", type=float, default=0.05)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| task | beta | method | states to 99 % | best 100, % of optimum | log Z (exact) | states in all | processor s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in given.sizes.split(","):
        plain = gf.ItemSets.standard(size)  # type: ignore[arg-type]
        for name in given.methods.split(";"):
            row = learned(name, plain, given.beta, given.most, given.seconds, given.epsilon)
            print(f"| {size} | {given.beta:g} | {name} | {row} |", flush=True)
        states = 16 * given.most * plain.size
        print(
            f"| {size} | - | random sets | {searched(lambda b, g, p=plain: at_random(p, 128, g), plain, states)} |",
            flush=True,
        )
        print(f"| {size} | - | genetic | {searched(genetic, plain, states)} |", flush=True)


if __name__ == "__main__":
    main()
