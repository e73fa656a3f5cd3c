"""How exact are the losses of GFlowNets on hypergrids, beside rows that need no learning?

    OMP_NUM_THREADS=1 python benchmarks/gflownet_hypergrids.py

Exact total variation of the policy's own law P_T (dynamic programming over all states, no samples) and |log Z error|. Every
learned row has the same processor seconds on a grid, network (2 x 128), batch 64, Adam 2e-3 (log Z: 0.1; both linear to 0 in the
second half), even exploration 0.2 falling to 0 over three quarters. Rows without learning: the untrained uniform policy, the
uniform law, and Metropolis chains (64 side by side, the first fifth left out) with as many reward calls as the trajectories that
trajectory balance had; its total variation is that of the histogram, noise of a finite sample included.
"""

import argparse
import time

import torch

import manifoldflow as mf
from manifoldflow import gflownet as gf

SECONDS = {(2, 8): 4.0, (2, 16): 12.0, (2, 32): 20.0, (4, 8): 24.0}
LOSSES = {
    "TB": (gf.trajectory_balance, {}),
    "DB": (gf.detailed_balance, {"flows": True}),
    "SubTB(0.9)": (gf.subtrajectory_balance(0.9), {"flows": True}),
    "FL-SubTB(0.9)": (gf.subtrajectory_balance(0.9), {"forward_looking": True}),
}


def trained(env: gf.Hypergrid, name: str, seconds: float) -> tuple[mf.GFlowNet, int]:
    """A GFlowNet after so many processor seconds, and the number of its trajectories."""
    torch.manual_seed(0)
    loss, options = LOSSES[name]
    model = mf.GFlowNet(env, gf.Mlp(env.observed, env.actions + bool(options), 128), loss=loss, **options)
    optimizer = torch.optim.Adam(
        [{"params": model.policy.parameters(), "lr": 2e-3}, {"params": [model.log_z], "lr": 0.1}]
    )
    base, began, count = [g["lr"] for g in optimizer.param_groups], time.process_time(), 0
    while (done := (time.process_time() - began) / seconds) < 1:
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * min(1.0, 2 * (1 - done) + 1e-3)
        epsilon = max(0.2 * (1 - done / 0.75), 0.0)
        model.noise = (epsilon, epsilon, 1)
        value = sum(model.loss_of(model.draw(64)).values())
        optimizer.zero_grad()
        value.backward()  # type: ignore[union-attr]
        optimizer.step()
        count += 64
    return model, count


def metropolis(env: gf.Hypergrid, calls: int, law: torch.Tensor, every: gf.Enumeration) -> float:
    """Total variation of the histogram of Metropolis chains that step to neighbours."""
    generator, chains = torch.Generator().manual_seed(0), 64
    place = torch.randint(env.height, (chains, env.dim), generator=generator)
    now, seen = env.log_reward({"place": place}), []
    for _ in range(max(calls // chains - 1, 1)):
        axis = torch.randint(env.dim, (chains, 1), generator=generator)
        way = 2 * torch.randint(2, (chains, 1), generator=generator) - 1
        to = place.scatter_add(1, axis, way)
        inside = ((to >= 0) & (to < env.height)).all(-1)
        value = env.log_reward({"place": to.clamp(0, env.height - 1)})
        takes = inside & (torch.rand(chains, generator=generator).log() < value - now)
        place, now = torch.where(takes.unsqueeze(-1), to, place), torch.where(takes, value, now)
        seen.append(place)
    kept = torch.cat(seen[len(seen) // 5 :])
    keys = env.key({"place": kept, "done": torch.ones(len(kept), dtype=torch.bool)})
    known = env.key(every.objects)
    order = known.argsort()
    share = torch.bincount(order[torch.searchsorted(known[order], keys)], minlength=len(known)) / len(keys)
    return float(0.5 * (share - law).abs().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the seconds")
    parser.add_argument("--grids", default="2x8,2x16,4x8,2x32")
    parser.add_argument("--r0", default="0.1,0.01,0.001")
    parser.add_argument("--losses", default=",".join(LOSSES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| grid | R0 | row | exact TV | log Z error | trajectories | processor s |\n|---|---|---|---|---|---|---|")
    for text in given.grids.split(","):
        dim, height = map(int, text.split("x"))
        for r0 in map(float, given.r0.split(",")):
            env = gf.Hypergrid(dim, height, r0=r0)
            every = gf.enumerate_env(env)
            law = env.log_reward(every.objects).double().softmax(0)
            seconds, calls = SECONDS[dim, height] * given.scale, 0
            for name in given.losses.split(","):
                model, count = trained(env, name, seconds)
                calls = calls or count
                off = abs(float(model.log_z.detach()) - env.log_z)
                row = f"| {name} | {model.total_variation(every):.4f} | {off:.4f} | {count:,} | {seconds:.0f} |"
                print(f"| {height}^{dim} | {r0} {row}", flush=True)
            idle = mf.GFlowNet(env, gf.Mlp(env.observed, env.actions, 8))
            torch.nn.init.zeros_(idle.policy.layers[-1].weight)
            torch.nn.init.zeros_(idle.policy.layers[-1].bias)
            even = float(0.5 * (law - 1 / len(law)).abs().sum())
            for name, value in (("uniform policy", idle.total_variation(every)), ("uniform law", even)):
                print(f"| {height}^{dim} | {r0} | {name} | {value:.4f} | - | 0 | 0 |", flush=True)
            value = metropolis(env, calls, law, every)
            print(f"| {height}^{dim} | {r0} | Metropolis | {value:.4f} | - | {calls:,} calls | - |", flush=True)


if __name__ == "__main__":
    main()
