"""How many trajectories a second does training make beside torchgfn, and how soon is it as exact?

torchgfn 2.4.1 wants numpy below 2, so it lives in an environment of its own, in which this file runs:

    python3 -m venv /tmp/gfn && /tmp/gfn/bin/pip install torch==2.13.0 "numpy<2" torchgfn==2.4.1 scipy safetensors
    PYTHONPATH=. OMP_NUM_THREADS=1 /tmp/gfn/bin/python benchmarks/gflownet_vs_torchgfn.py

Same grid, network (2 x 256, leaky ReLU, the same weights to begin with), uniform backward policy, trajectory balance, Adam with
1e-3 (log Z: 1e-1), batch. Equal states of a batch are shown to our network once (``merge``, where the environment numbers its
states); the speed without it is a column of its own. All take turns in one process; processor seconds of this process, so other
programs count little. The exact total variation is that of the policy's own law, by dynamic programming, for both; computing it
is not timed.
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import torch

import manifoldflow as mf
from manifoldflow import gflownet as gf


class Ours:
    """Trajectory balance here."""

    def __init__(self, dim: int, height: int, seed: int, merge: bool = True) -> None:
        torch.manual_seed(seed)
        self.env = gf.Hypergrid(dim, height)
        self.model = mf.GFlowNet(self.env, gf.Mlp(self.env.observed, self.env.actions, 256, 2), merge=merge)
        groups = [{k: v for k, v in g.items() if k == "params"} | {"lr": 1e-3 * g.get("lr_scale", 1.0)} for g in
                  [{"params": self.model.policy.parameters()}, {"params": [self.model.log_z], "lr_scale": 100.0}]]  # fmt: skip
        self.optimizer = torch.optim.Adam(groups)

    def step(self, batch: int) -> None:
        loss = sum(self.model.loss_of(self.model.draw(batch)).values())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def total_variation(self, every: gf.Enumeration) -> float:
        return self.model.total_variation(every)


class Theirs:
    """torchgfn, put together as in its own examples."""

    def __init__(self, dim: int, height: int, like: Ours) -> None:
        from gfn.estimators import DiscretePolicyEstimator
        from gfn.gflownet import TBGFlowNet
        from gfn.gym import HyperGrid
        from gfn.preprocessors import KHotPreprocessor
        from gfn.utils.modules import MLP, DiscreteUniform

        self.env = HyperGrid(dim, height)
        self.ours = like
        show = KHotPreprocessor(height=height, ndim=dim)
        assert show.output_dim is not None
        network = MLP(show.output_dim, self.env.n_actions, 256, 2, activation_fn="leaky_relu")
        with torch.no_grad():
            for mine, theirs in zip(like.model.policy.parameters(), network.parameters(), strict=True):
                theirs.copy_(mine)
        self.network = network
        forward = DiscretePolicyEstimator(network, self.env.n_actions, preprocessor=show)
        back = DiscretePolicyEstimator(
            DiscreteUniform(self.env.n_actions - 1), self.env.n_actions, preprocessor=show, is_backward=True
        )
        self.flow = TBGFlowNet(pf=forward, pb=back, init_logZ=0.0)
        self.optimizer = torch.optim.Adam(
            [
                {"params": self.flow.pf_pb_parameters(), "lr": 1e-3},
                {"params": self.flow.logz_parameters(), "lr": 1e-1},
            ]
        )

    def step(self, batch: int) -> None:
        # On policy, with the log-probabilities of the rollout: the quicker of its two ways.
        made = self.flow.sample_trajectories(self.env, n=batch, save_logprobs=True)
        loss = self.flow.loss(self.env, made, recalculate_all_logprobs=False)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def total_variation(self, every: gf.Enumeration) -> float:
        mine = self.ours.model.policy
        kept = [p.detach().clone() for p in mine.parameters()]
        with torch.no_grad():
            for p, q in zip(mine.parameters(), self.network.parameters(), strict=True):
                p.copy_(q)
            value = self.ours.model.total_variation(every)
            for p, q in zip(mine.parameters(), kept, strict=True):
                p.copy_(q)
        return value


def speed(dim: int, height: int, batch: int, rounds: int, steps: int) -> list[float]:
    """Median trajectories a second of ours, ours without merging equal states, and theirs, in turns, over the first steps."""
    runners = [Ours(dim, height, 0), Ours(dim, height, 0, merge=False)]
    every: list[Ours | Theirs] = [*runners, Theirs(dim, height, runners[0])]
    rates: list[list[float]] = [[] for _ in every]
    for number in range(rounds + 1):
        for own, runner in zip(rates, every, strict=True):
            began = time.process_time()
            for _ in range(steps):
                runner.step(batch)
            if number:  # the first warms up
                own.append(batch * steps / (time.process_time() - began))
    return [statistics.median(own) for own in rates]


def reached(
    runner: Ours | Theirs, every: gf.Enumeration, batch: int, levels: list[float], most: float
) -> Iterator[tuple[float, float, int]]:
    """Level, processor seconds and trajectories when the exact total variation first falls below it."""
    spent, made, left, look = 0.0, 0, sorted(levels, reverse=True), 20
    while left and spent < most:
        began = time.process_time()
        for _ in range(look):
            runner.step(batch)
        spent += time.process_time() - began
        made += batch * look
        now = runner.total_variation(every)
        while left and now < left[0]:
            yield left.pop(0), spent, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=float, default=40.0, help="processor seconds of a run to a level")
    parser.add_argument("--grids", default="2x8x16,2x8x256,2x20x256", help="runs to a level: dim x height x batch")
    parser.add_argument("--levels", action="store_true", help="runs to a level only")
    parser.add_argument("--quick", action="store_true", help="speed on two grids only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread; trajectories per processor second, medians of {given.rounds}")
    if given.levels:
        return levels(given.grids, given.most)
    print("| grid | batch | ours | without merging | torchgfn | ratio | ratio without |\n|---|---|---|---|---|---|---|")
    for dim, height in [(2, 8), (4, 8)] if given.quick else [(2, 8), (2, 20), (3, 10), (4, 8)]:
        for batch, steps in ((16, 20), (256, 4)):
            a, b, c = speed(dim, height, batch, given.rounds, steps)
            print(
                f"| {dim}D h{height} | {batch} | {a:,.0f} | {b:,.0f} | {c:,.0f} | {a / c:.2f} | {b / c:.2f} |",
                flush=True,
            )
    if not given.quick:
        levels(given.grids, given.most)


def levels(grids: str, most: float) -> None:
    """Print when each falls below levels of exact total variation."""
    print("\n| grid, batch | exact TV below | ours: s (trajectories) | torchgfn: s (trajectories) | ratio |")
    print("|---|---|---|---|---|")
    for text in grids.split(","):
        dim, height, batch = map(int, text.split("x"))
        every = gf.enumerate_env(gf.Hypergrid(dim, height))
        ours = Ours(dim, height, 0)
        theirs = Theirs(dim, height, ours)
        steps = [0.25, 0.1, 0.05, 0.025]
        mine = {v: (s, n) for v, s, n in reached(ours, every, batch, steps, most)}
        first = {v: (s, n) for v, s, n in reached(theirs, every, batch, steps, most)}
        for v in steps:
            if v in mine and v in first:
                (a, n), (b, m) = mine[v], first[v]
                print(
                    f"| {dim}D h{height}, {batch} | {v} | {a:.1f} ({n:,}) | {b:.1f} ({m:,}) | {b / a:.2f} |", flush=True
                )


if __name__ == "__main__":
    main()
