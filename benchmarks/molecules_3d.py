"""How sound are molecules made in three dimensions, at 100 steps and at 8, beside real, unlearned and broken ones?

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/molecules_3d.py ../shared/data/molecules/qm9_smiles.txt.gz \\
        ../shared/data/molecules/gdb7_3d.npz --models molecules_3d:100 molecules_3d_few:8 --num 1000 --poses 200 --strained 200

Rows: every ``--models`` CHECKPOINT:STEPS; RDKit's conformers of real SMILES (what they were trained on: the floor); without
learning, random molecules that respect valences, with the sizes, atoms and numbers of bonds of real ones, placed by RDKit or at
random; and broken, real molecules whose bonds, or whose places, are dealt out among their atoms anew: every measure has to fail
one of them. Shares are of all molecules that were asked for, those that RDKit found no place for included. Novelty is against the
training molecules. PoseBusters and GFN2 take a while, so they look at the first so many of the sound ones (of rows that are no
model at most a quarter). A row is printed and written as soon as it is there; with ``--resume`` rows in the file are kept.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import manifoldflow as mf
from manifoldflow.field import edges_of_pairs
from manifoldflow.files import write_json
from manifoldflow.tasks.common.tables import share
from manifoldflow.tasks.molecules.conformers import Conformers, embed, join, load_conformers
from manifoldflow.tasks.molecules.graphs import graphs_of, random_molecules, smiles_of
from manifoldflow.tasks.molecules.reading import read_molecules
from manifoldflow.tasks.molecules.three_d import Made, draw_sizes, sample_molecules, tensors_of
from manifoldflow.tasks.molecules.three_d_metrics import (
    busters,
    is_sound,
    measure,
    quantiles,
    real_molecules,
    smiles_without_hydrogens,
    strain,
    to_rdkit,
)

REAL = "real molecules, RDKit"


def rows(args: argparse.Namespace, every: list[str]) -> Iterator[tuple[str, Callable[[], tuple[Made, int]]]]:
    """Names, and what makes the molecules: they, and how many were asked for."""

    def sampled(name: str, steps: int) -> tuple[Made, int]:
        flow, generator = mf.load(name), torch.Generator().manual_seed(args.seed)
        return sample_molecules(flow, draw_sizes(flow, args.num, generator), steps=steps, generator=generator), args.num

    for model in args.models:
        name, _, steps = model.rpartition(":")
        yield f"{name}, {steps} steps", lambda name=name, steps=int(steps): sampled(name, steps)

    def embedded(smiles: list[str]) -> tuple[Made, int]:
        return as_made(embed(smiles, seed=args.seed)[0]), len(smiles)

    def altered(change: Callable[[Made, torch.Generator], Made], smiles: list[str]) -> tuple[Made, int]:
        made, count = embedded(smiles)
        return change(made, torch.Generator().manual_seed(args.seed)), count

    real = [every[i] for i in np.random.default_rng(args.seed).permutation(len(every))[: args.num]]
    yield REAL, lambda: embedded(real)
    yield "random molecules, RDKit", lambda: embedded(random_smiles(real, args.num))
    yield "random molecules, random places", lambda: altered(scattered, random_smiles(real, args.num))
    yield "real molecules, places dealt out anew", lambda: altered(misplaced, real)
    yield "real molecules, bonds dealt out anew", lambda: altered(rebonded, real)


def scattered(made: Made, generator: torch.Generator) -> Made:
    """Places of a normal law of 1.5 A, from which the flow begins."""
    return Made(made.state | {"pos": 1.5 * torch.randn(made.state["pos"].shape, generator=generator)}, made.mask)


def misplaced(made: Made, generator: torch.Generator) -> Made:
    """The places of a molecule in another order."""
    order = torch.rand(made.mask.shape, generator=generator).masked_fill(~made.mask, 2.0).argsort(1)
    return Made(made.state | {"pos": made.state["pos"].gather(1, order.unsqueeze(-1).expand(-1, -1, 3))}, made.mask)


def rebonded(made: Made, generator: torch.Generator) -> Made:
    """The bonds of a molecule between other pairs of its atoms."""
    bond, pairs = made.state["bond"], edges_of_pairs(made.mask.unsqueeze(1) & made.mask.unsqueeze(2))
    order = torch.rand(bond.shape, generator=generator).masked_fill(~pairs, 2.0).argsort(1)
    dealt = torch.zeros_like(bond).masked_scatter(pairs, bond.gather(1, order)[order_of(pairs)])
    return Made(made.state | {"bond": dealt}, made.mask)


def order_of(pairs: torch.Tensor) -> torch.Tensor:
    """The first entries of every row, as many as it has pairs."""
    return torch.arange(pairs.shape[1]) < pairs.sum(1, keepdim=True)


def random_smiles(like: list[str], count: int) -> list[str]:
    """Random molecules that respect valences, with the sizes, atoms and numbers of bonds of real ones."""
    graphs, _ = graphs_of(like)
    made = smiles_of(random_molecules(graphs, count, torch.Generator().manual_seed(0)))
    return [s for s in made if s and "." not in s]


def as_made(flat: Conformers) -> Made:
    """Conformers, to be measured like molecules of a model."""
    return real_molecules(tensors_of(flat).batch(torch.arange(len(flat))))


def known_molecules(every: set[str], geometries: list[str]) -> set[str]:
    """SMILES of all molecules of the training files."""
    known = set(every)
    for molecule in to_rdkit(as_made(join([load_conformers(p) for p in geometries]))) if geometries else []:
        if is_sound(molecule):
            known.add(smiles_without_hydrogens(molecule))
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smiles")
    parser.add_argument("geometries", nargs="*")
    parser.add_argument("--models", nargs="*", default=["molecules_3d:100", "molecules_3d_few:8"])
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--poses", type=int, default=200)
    parser.add_argument("--strained", type=int, default=200)
    parser.add_argument("--heaviest", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="molecules_3d.json")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(args.out)
    found = json.loads(out.read_text(encoding="utf-8")) if args.resume and out.exists() else {}
    records = read_molecules(args.smiles).records
    known = known_molecules({r.smiles for r in records}, args.geometries)
    small = [r.smiles for r in records if r.mol.GetNumHeavyAtoms() <= args.heaviest]
    for name, make in rows(args, small):
        if name in found:
            continue
        began = time.process_time()
        made, asked = make()
        seconds = time.process_time() - began
        scores, molecules, smiles = measure(made, reference=known, poses=False)
        is_model = ", " in name and name.endswith("steps")
        poses, strained = (n if is_model or name == REAL else n // 4 for n in (args.poses, args.strained))
        if name.startswith("random"):
            poses = 0  # its energy check places 50 conformers without a bound, which graphs that fit no space never end
        if poses and molecules:
            scores.busted, scores.checks = busters(molecules[:poses])
        began = time.process_time()
        if strained and molecules:
            scores.strain = [v for v in map(strain, molecules[:strained]) if v is not None]
        found[name] = vars(scores) | {"asked": asked, "seconds": seconds, "examples": smiles[:20]}
        write_json(out, found)
        passed = share(*scores.busted) if scores.busted else "-"
        print(
            f"{name}: atoms {share(scores.atoms_stable, scores.atoms)}, molecules {share(scores.stable, asked)}, "
            f"whole and allowed {share(scores.sound, asked)}, different {scores.unique}, new {scores.novel}, "
            f"PoseBusters {passed}, strain {quantiles(scores.strain)} kcal/mol, {seconds:.0f} s "
            f"(relaxing {time.process_time() - began:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
