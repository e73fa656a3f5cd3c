"""How sound are molecules made in three dimensions, at 100 steps and at 8, beside real ones and beside ones without learning?

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/molecules_3d.py ../shared/data/molecules/qm9_smiles.txt.gz \\
        ../shared/data/molecules/gdb7_3d.npz --checkpoint molecules_3d --num 1000 --poses 200 --strained 200

Rows: the flow at every ``--steps``; RDKit's conformers of real SMILES (what it was trained on); RDKit's conformers of random
molecules that respect valences (no learning, and no geometry of its own). Novelty is against the training molecules. PoseBusters
and GFN2 take a second or more a molecule, so they look at the first so many of the sound ones. A row is printed and written as
soon as it is there.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import manifoldflow as mf
from manifoldflow.files import write_json
from manifoldflow.tasks.common.tables import share
from manifoldflow.tasks.molecules.conformers import Conformers, embed, join, load_conformers
from manifoldflow.tasks.molecules.graphs import graphs_of, random_molecules, smiles_of
from manifoldflow.tasks.molecules.reading import read_molecules
from manifoldflow.tasks.molecules.three_d import Made, draw_sizes, sample_molecules, tensors_of
from manifoldflow.tasks.molecules.three_d_metrics import (
    is_sound,
    measure,
    quantiles,
    real_molecules,
    smiles_without_hydrogens,
    to_rdkit,
)


def rows(args: argparse.Namespace) -> Iterator[tuple[str, Made, float]]:
    """Names, molecules, and the processor seconds they took."""
    flow = mf.load(args.checkpoint)
    for steps in args.steps:
        generator = torch.Generator().manual_seed(args.seed)
        began = time.process_time()
        made = sample_molecules(flow, draw_sizes(flow, args.num, generator), steps=steps, generator=generator)
        yield f"flow, {steps} steps", made, time.process_time() - began
    smiles = some_smiles(args.smiles, args.num, args.heaviest)
    for name, given in (
        ("real molecules, RDKit", smiles),
        ("random molecules, RDKit", random_smiles(smiles, args.num)),
    ):
        began = time.process_time()
        made, _ = embed(given, seed=args.seed)
        yield name, as_made(made), time.process_time() - began


def some_smiles(path: str, count: int, heaviest: int, seed: int = 0) -> list[str]:
    """Real molecules, drawn at random."""
    records = [r.smiles for r in read_molecules(path).records if r.mol.GetNumHeavyAtoms() <= heaviest]
    return [records[i] for i in np.random.default_rng(seed).permutation(len(records))[:count]]


def random_smiles(like: list[str], count: int) -> list[str]:
    """Random molecules that respect valences, with the sizes, atoms and numbers of bonds of real ones."""
    graphs, _ = graphs_of(like)
    return [
        s for s in smiles_of(random_molecules(graphs, count, torch.Generator().manual_seed(0))) if s and "." not in s
    ]


def as_made(flat: Conformers) -> Made:
    """Conformers, to be measured like molecules of a model."""
    return real_molecules(tensors_of(flat).batch(torch.arange(len(flat))))


def known_molecules(args: argparse.Namespace) -> set[str]:
    """SMILES of all molecules of the training files."""
    known = {r.smiles for r in read_molecules(args.smiles).records}
    flat = join([load_conformers(p) for p in args.geometries])
    for molecule in to_rdkit(as_made(flat)):
        if is_sound(molecule):
            known.add(smiles_without_hydrogens(molecule))
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smiles")
    parser.add_argument("geometries", nargs="*")
    parser.add_argument("--checkpoint", default="molecules_3d")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 8])
    parser.add_argument("--poses", type=int, default=200)
    parser.add_argument("--strained", type=int, default=200)
    parser.add_argument("--heaviest", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="molecules_3d.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known, found = known_molecules(args), {}
    for name, made, seconds in rows(args):
        scores, molecules, smiles = measure(made, reference=known, poses=False)
        if args.poses and molecules:
            from manifoldflow.tasks.molecules.three_d_metrics import busters

            scores.busted, scores.checks = busters(molecules[: args.poses])
        if args.strained and molecules:
            from manifoldflow.tasks.molecules.three_d_metrics import strain

            scores.strain = [v for v in map(strain, molecules[: args.strained]) if v is not None]
        found[name] = vars(scores) | {"seconds": seconds, "examples": smiles[:20]}
        write_json(Path(args.out), found)
        passed = share(*scores.busted) if scores.busted else "-"
        print(
            f"{name}: atoms {share(scores.atoms_stable, scores.atoms)}, molecules {share(scores.stable, scores.total)}, "
            f"whole and allowed {share(scores.sound, scores.total)}, different {scores.unique}, new {scores.novel}, "
            f"PoseBusters {passed}, strain {quantiles(scores.strain)} kcal/mol, {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
