"""Do tokens that jump or points that diffuse (GDSS) make better graphs, at equal networks, and what needs no learning?

    export PYTHONPATH=. OMP_NUM_THREADS=1
    python benchmarks/graphs_jumps_vs_diffusion.py generic ../shared/data/graphs/community_small.npz
    python benchmarks/graphs_jumps_vs_diffusion.py molecules ../shared/data/molecules/qm9_smiles.txt.gz

Generic graphs: MMD of degrees, clustering and 4-node orbits, as many samples as test graphs, mean of five draws. The published
test part is not at hand, so the first quarter of what is serves as ours: published numbers are of another split.
Beside them: what as many training graphs reach (the floor of a set this small), random graphs of the same sizes and densities,
and edges exchanged at equal degrees. Molecules: the share that RDKit allows without correction, in one piece, different, new to
the training part, and the ChemNet distance of those in one piece to as many held-out molecules, with that of others held out.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from manifoldflow.files import write_json
from manifoldflow.tasks.common.tables import share
from manifoldflow.tasks.molecules import graph_metrics as gm
from manifoldflow.tasks.molecules import graphs as g
from manifoldflow.training import TrainConfig, fit

TRAINING = TrainConfig(
    learning_rate=2e-3, warmup_steps=50, weight_decay=0.0, ema=0.995, decay=0.4, progress=False, precision="32-true"
)
MOLECULES: dict[str, tuple[dict[str, float], ...]] = {
    "jumps": ({"temperature": 1.0}, {"temperature": 0.9}, {"temperature": 1.0, "late": 1.0}),
    "gdss": ({},),
}
SAMPLERS: dict[str, tuple[dict[str, Any], ...]] = {
    "jumps": ({"corrector": 1.0}, {"corrector": 1.0, "late": 1.0}),
    "gdss": ({"steps": 200, "langevin": 0.0}, {"steps": 200, "langevin": 0.02}),
}


def train(config: g.GraphConfig, data: g.GraphSet, args: argparse.Namespace, batch: int, out: str) -> g.mf.Flow:
    """A model, its processor seconds printed; that of ``--models`` if there is one."""
    if args.models:
        return g.mf.load(f"{args.models}_{config.method}")
    torch.manual_seed(0)
    began = time.process_time()
    settings = replace(TRAINING, max_steps=args.steps, max_minutes=args.minutes, validate_every=args.steps)
    flow = fit(g.build(config), g.graph_batches(data, config, batch, 0), settings, out=out, resume=True)
    print(f"{config.method}: {args.steps} steps at most, {time.process_time() - began:.0f} s", flush=True)
    return flow


def generic(args: argparse.Namespace) -> dict[str, list[float]]:
    """MMD of degree, clustering, orbit and their mean, by row."""
    data = g.load_graphs(args.data)
    rows = torch.arange(len(data))
    test, known = data.rows(rows[: len(data) // 4]), data.rows(rows[len(data) // 4 :])
    count, found = len(test), {}
    generator = torch.Generator().manual_seed(0)

    def mean(name: str, draws: list[torch.Tensor]) -> None:
        some = [gm.discrepancies(d.float(), test.edge.float()) for d in draws]
        found[name] = [fmean(getattr(s, n) for s in some) for n in ("degree", "clustering", "orbit", "mean")]
        print(name, " ".join(f"{v:.4f}" for v in found[name]), flush=True)

    edge = known.edge.float()
    mean("training graphs, all", [edge])
    mean("training graphs, as many", [edge[torch.randperm(len(edge), generator=generator)[:count]] for _ in range(5)])
    mean("random, same density", [gm.erdos_renyi(edge, count, generator) for _ in range(5)])
    mean("edges exchanged", [gm.configuration_model(edge, count, 200, generator) for _ in range(5)])
    for method in args.methods:
        config = g.GraphConfig(
            kind="generic",
            method=method,
            width=64,
            edge_width=32,
            depth=4,
            degrees=int(edge.sum(-1).max()) + 1,
            **known.shares(),
        )
        flow = train(config, known, args, 32, f"{args.out}_{method}")
        for options in SAMPLERS[method]:
            made = []
            for seed in range(5):
                draw = torch.Generator().manual_seed(seed)
                sizes = g.draw_sizes(config.sizes, count, draw)
                made.append(g.sample_graphs(flow, sizes, generator=draw, **options).edge)
            mean(f"{method} {options}", made)
    return found


def molecules(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Counts and ChemNet distances by row."""
    from manifoldflow.tasks.molecules.metrics import chemnet_distance
    from manifoldflow.tasks.molecules.reading import read_molecules

    data, failed = g.graphs_of(smiles := read_molecules(args.data).distinct[:: args.every])
    left_out = set(failed)
    smiles = [s for s in smiles if s not in left_out]
    is_held = torch.arange(len(data)) % 10 == 9
    known = data.rows((~is_held).nonzero().squeeze(1))
    reference = {smiles[i] for i in (~is_held).nonzero().squeeze(1).tolist()}
    held = [smiles[i] for i in is_held.nonzero().squeeze(1).tolist()]
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0)).tolist()
    one, other = ([held[i] for i in order[k : k + args.num]] for k in (0, args.num))
    found: dict[str, dict[str, Any]] = {}

    def row(name: str, made: g.GraphSet) -> None:
        scores, whole = g.measure(made, reference)
        distance = chemnet_distance(whole, one) if args.distance and len(whole) > 1 else None
        found[name] = scores._asdict() | {"chemnet": distance, "examples": whole[:20]}
        print(
            f"{name}: valid {share(scores.valid, scores.total)}, in one piece {share(scores.whole, scores.total)}, "
            f"different {scores.unique}, new {scores.novel}, ChemNet distance {distance}",
            flush=True,
        )

    row("held-out molecules (the floor)", g.graphs_of(other)[0])
    row("random molecules", g.random_molecules(known, args.num, torch.Generator().manual_seed(0)))
    for method in args.methods:
        config = g.GraphConfig(method=method, **known.shares())
        flow = train(config, known, args, 128, f"{args.out}_{method}")
        for some in MOLECULES[method]:
            draw = torch.Generator().manual_seed(0)
            sizes = g.draw_sizes(config.sizes, args.num, draw)
            row(f"{method} {some}", g.sample_graphs(flow, sizes, generator=draw, **some))  # type: ignore[arg-type]
            write_json(Path(f"{args.out}.json"), found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["generic", "molecules"])
    parser.add_argument("data")
    parser.add_argument("--methods", nargs="+", default=["jumps", "gdss"], choices=["jumps", "gdss"])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--minutes", type=float, default=0.0, help="end the training of each model after this long")
    parser.add_argument("--models", help="trained models: their folders less _jumps and _gdss")
    parser.add_argument(
        "--distance", action=argparse.BooleanOptionalAction, default=True, help="Frechet ChemNet distance"
    )
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th molecule of the file")
    parser.add_argument("--out", default="runs/graphs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    write_json(Path(f"{args.out}.json"), generic(args) if args.kind == "generic" else molecules(args))


if __name__ == "__main__":
    main()
