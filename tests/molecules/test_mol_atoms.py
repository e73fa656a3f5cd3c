"""Molecules of atoms and bonds: exact masks, and all small molecules against an enumeration of another kind."""

import itertools
from typing import Any

import pytest
import torch
from rdkit import Chem

import manifoldflow as mf
from manifoldflow.gflownet import check_env, enumerate_env
from manifoldflow.gflownet.env import parents
from manifoldflow.tasks.molecules.atom_env import AtomEnv, AtomPolicy
from manifoldflow.tasks.molecules.baselines import random_molecules


@pytest.mark.parametrize(
    "options",
    [
        {"max_atoms": 5},
        {"max_atoms": 5, "atoms": ("C", "N+", "O-", "O"), "max_rings": 1},
        {"max_atoms": 8, "start": "c1ccncc1", "max_rings": 1},
        {"max_atoms": 7, "start": "*c1ccc(*)o1", "max_rings": 2},
        {"max_atoms": 1},
    ],
    ids=str,
)
def test_masks_steps_and_their_undoing_are_exact(options: dict[str, Any]) -> None:
    check_env(AtomEnv(**options), trajectories=32)


def test_all_molecules_of_three_atoms_are_there_and_no_others() -> None:
    env = AtomEnv(atoms=("C", "O"), max_atoms=3, max_rings=1)
    every = enumerate_env(env)
    found = set(env.to_smiles(every.objects))
    wanted = set()
    types = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    for count in (1, 2, 3):  # every assignment of elements and orders that RDKit accepts and that is connected
        pairs = list(itertools.combinations(range(count), 2))
        for symbols in itertools.product("CO", repeat=count):
            for orders in itertools.product(range(4), repeat=len(pairs)):
                mol = Chem.RWMol()
                for s in symbols:
                    mol.AddAtom(Chem.Atom(s))
                for (i, j), order in zip(pairs, orders, strict=True):
                    if order:
                        mol.AddBond(i, j, types[order])
                try:
                    Chem.SanitizeMol(mol)
                except ValueError:
                    continue
                if len(Chem.GetMolFrags(mol)) == 1:
                    wanted.add(Chem.MolToSmiles(mol))
    assert found == wanted and len(found) > 20


@pytest.mark.parametrize(
    "options", [{"max_atoms": 4, "max_rings": 2}, {"max_atoms": 4, "start": "*CO*", "max_rings": 1}], ids=str
)
def test_what_may_be_undone_is_exactly_what_may_be_done(options: dict[str, Any]) -> None:
    env = AtomEnv(atoms=("C", "O"), **options)
    every = enumerate_env(env)
    before, action, owner = parents(env, every.states)
    keys = env.key(every.states)
    assert bool(torch.isin(env.key(before), keys).all())  # every parent can be reached: no atom is left without a bond
    onward = {(int(keys[a]), int(keys[every.next[a, b]])) for a, b in every.allowed.nonzero().tolist()}
    assert onward == set(zip(env.key(before).tolist(), keys[owner].tolist(), strict=True))
    assert len(action) == int(every.allowed.sum())


def test_every_molecule_is_valid_and_grows_from_its_start() -> None:
    env = AtomEnv(max_atoms=9, start="*c1ccncc1")
    smiles = env.to_smiles(random_molecules(env, 48, torch.Generator().manual_seed(0)))
    ring = Chem.MolFromSmarts("n1ccccc1")
    mols = [Chem.MolFromSmiles(s) for s in smiles]
    assert all(m is not None for m in mols)
    assert sum(m.HasSubstructMatch(ring) for m in mols) == len(mols)  # nothing was closed onto the ring's other atoms
    with pytest.raises(ValueError, match="the atom Cl is not among C, N, O, F"):
        AtomEnv(start="CCl")
    with pytest.raises(ValueError, match="no valence is known for the atom 'Xx'"):
        AtomEnv(atoms=("C", "Xx"))
    with pytest.raises(ValueError, match="10 heavy atoms, more than max_atoms = 9"):
        AtomEnv(start="C" * 10)


def test_a_policy_learns_the_law_of_its_reward() -> None:
    env = AtomEnv(lambda smiles: [0.1 + s.count("O") for s in smiles], atoms=("C", "O"), max_atoms=3, max_rings=1)
    every = enumerate_env(env)
    torch.manual_seed(0)
    model = mf.GFlowNet(env, AtomPolicy(env, 24, 2))
    optimiser = torch.optim.Adam(
        [{"params": model.policy.parameters(), "lr": 1e-2}, {"params": [model.log_z], "lr": 0.1}]
    )
    before = model.total_variation(every)
    for step in range(150):
        optimiser.zero_grad()
        model.loss_of(model.draw(64, generator=torch.Generator().manual_seed(step)))["balance"].backward()
        optimiser.step()
    assert model.total_variation(every) < 0.1 < before


def test_the_order_of_equal_atoms_does_not_change_what_a_policy_says_of_the_end() -> None:
    env = AtomEnv(max_atoms=5)
    torch.manual_seed(0)
    policy = AtomPolicy(env, 16, 2)
    x = random_molecules(env, 32, torch.Generator().manual_seed(3))
    full = (env.size(x) == 5).nonzero().squeeze(1)
    x = {n: v[full] for n, v in x.items()}
    turn = torch.tensor([2, 0, 4, 1, 3])
    y = {"atom": x["atom"][:, turn], "bond": x["bond"][:, turn][:, :, turn], "done": x["done"]}
    assert len(full) > 5
    assert torch.allclose(policy(env.observe(x))[:, 0], policy(env.observe(y))[:, 0], atol=1e-5)
