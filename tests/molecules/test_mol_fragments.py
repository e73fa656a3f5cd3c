"""Molecules of fragments: vocabularies, states and their exact undoing, validity, likelihoods against enumeration."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rdkit import Chem

import manifoldflow as mf
from manifoldflow.gflownet import check_env, enumerate_env
from manifoldflow.gflownet.env import parents
from manifoldflow.tasks.molecules.baselines import genetic, mutated, random_molecules
from manifoldflow.tasks.molecules.fragment_env import FragmentEnv
from manifoldflow.tasks.molecules.fragments import Block, Vocabulary, load_fragments, start_block
from manifoldflow.tasks.molecules.likelihood import log_probability
from manifoldflow.tasks.molecules.oracle import Oracle
from manifoldflow.tasks.molecules.policies import GraphPolicy
from manifoldflow.tasks.molecules.rewards import Objective

TINY = Vocabulary(
    (
        Block("benzene", "c1ccccc1", (0, 3)),
        Block("methyl", "C", (0,)),
        Block("sulfonyl", "O=S=O", (1, 1), (False, True)),
        Block("amide", "NC=O", (0, 1)),
    )
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_embedded_vocabulary_holds_valid_blocks() -> None:
    book = load_fragments()
    assert 50 <= len(book) <= 120 and book.most_sites == 3
    assert bool(book.has_ring.any()) and bool(book.needed.any()) and int(book.atom_count.min()) == 1
    assert book.stable_bonds().shape == (len(book), 3, len(book))
    number = {b.name: i for i, b in enumerate(book.blocks)}
    bonds = book.stable_bonds()
    assert not bonds[number["oxy"], 1, number["amino"]] and bonds[number["sulfonyl"], 1, number["amino"]]
    assert not bonds[number["carbonyl"], 1, number["carbonyl"]] and bonds[number["phenylene"], 1, number["fluoro"]]


def test_a_vocabulary_is_read_from_json_and_from_smiles_with_attachment_points(tmp_path: Path) -> None:
    table = {
        "block_name": {"0": "a", "1": "b"},
        "block_smi": {"0": "c1ccccc1", "1": "CO"},
        "block_r": {"0": [0, 3], "1": [1, 0, 0]},
    }
    (tmp_path / "v.json").write_text(json.dumps(table))
    assert load_fragments(tmp_path / "v.json").blocks == (Block("a", "c1ccccc1", (0, 3)), Block("b", "CO", (1, 0, 0)))
    (tmp_path / "v.smi").write_text("*c1cccnc1 pyridyl\n[*:1]c1cnccc1[*:2] two\n*CC* chain\n[1*]S(=O)(=O)* must\n")
    blocks = load_fragments(tmp_path / "v.smi").blocks
    assert [b.name for b in blocks] == ["pyridyl", "two", "chain", "must"]  # the two ends of the chain are equal
    assert blocks[0].smiles == "c1ccncc1" and len(blocks[0].sites) == 1
    assert blocks[3].needed == (True, False) or blocks[3].needed == (False, True)
    (tmp_path / "w.smi").write_text("*C(C)C(*)O both\n")
    assert [b.name for b in load_fragments(tmp_path / "w.smi").blocks] == ["both_1", "both_2"]


@pytest.mark.parametrize(
    "text, told",
    [
        ("*C a\nCCO b\n", "line 2: b has no attachment point; mark one with"),
        ("*=C a\n", "an attachment point must hang on one atom by a single bond"),
        ("*C.C a\n", "a has several parts"),
        ("*C(C a\n", "line 1: not a SMILES"),
    ],
)
def test_fragments_that_are_none_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "v.smi").write_text(text)
    with pytest.raises(ValueError) as error:
        load_fragments(tmp_path / "v.smi")
    assert told in str(error.value)


def test_blocks_that_cannot_be_filled_are_named() -> None:
    with pytest.raises(ValueError, match=r"block 1 \(x, C\): has no attachment point"):
        Vocabulary((Block("x", "C", ()),))
    with pytest.raises(ValueError, match="cannot all be filled"):
        Vocabulary((Block("x", "C(F)(F)F", (0, 0)),))
    with pytest.raises(ValueError, match="attachment at atom 4, it has 1"):
        Vocabulary((Block("x", "C", (4,)),))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_fragments": 3, "stable": False},
        {"start": "*c1cc(*)cnc1"},
        {"start": "CC(=O)Nc1ccc(O)cc1"},
        {"forbidden": ["cS"], "max_atoms": 14},
        {"max_fragments": 2},
    ],
    ids=str,
)
def test_masks_steps_and_their_undoing_are_exact(options: dict[str, Any]) -> None:
    check_env(FragmentEnv(TINY, **({"max_fragments": 4} | options)), trajectories=32)


def test_every_molecule_is_valid_and_keeps_the_rules() -> None:
    env = FragmentEnv(max_fragments=6, max_atoms=24, forbidden=["[Br]", "[NX3]-C(=O)-[NX3]"])
    x = random_molecules(env, 64, generator())
    smiles = env.to_smiles(x)
    assert smiles == [Chem.CanonSmiles(s) for s in smiles] and bool(env.is_done(x).all())
    for text, atoms, blocks in zip(smiles, env.atoms(x).tolist(), env.size(x).tolist(), strict=True):
        mol = Chem.MolFromSmiles(text)
        assert mol.GetNumHeavyAtoms() == atoms <= 24 and 2 <= blocks <= 6
        assert "Br" not in text and "[SH]" not in text  # what must be filled is
    value = env.rewards(["Brc1ccccc1", "CNC(=O)NC", "c1ccccc1"], lambda s: [0.5] * len(s))
    assert value.tolist() == pytest.approx([1e-4, 1e-4, 0.5])


def test_a_start_is_in_every_molecule_and_grows_only_where_it_may() -> None:
    env = FragmentEnv(max_fragments=4, start="*c1cc(*)c2ccccc2n1")
    core = Chem.MolFromSmarts("[c;H0]1c[c;H0]c2[cH][cH][cH][cH]c2n1")
    x = random_molecules(env, 32, generator())
    smiles = env.to_smiles(x)
    assert any(Chem.MolFromSmiles(s).HasSubstructMatch(core) for s in smiles)
    plain = Chem.MolFromSmarts("c1ccc2[cH][cH][cH][cH]c2n1")
    assert all(Chem.MolFromSmiles(s).HasSubstructMatch(plain) for s in smiles)
    with pytest.raises(ValueError, match="no atom has a hydrogen to give"):
        start_block("FC(F)(F)C(F)(F)F")
    with pytest.raises(ValueError, match="several parts"):
        start_block("CC.O")


@pytest.fixture(scope="module")
def enumerated() -> tuple[FragmentEnv, Any]:
    env = FragmentEnv(TINY, max_fragments=3, min_fragments=1, stable=False)
    return env, enumerate_env(env)


def test_the_number_of_ways_to_build_a_tree_is_that_of_all_paths(enumerated: tuple[FragmentEnv, Any]) -> None:
    env, every = enumerated
    ways = torch.zeros(len(every.done), dtype=torch.float64)
    ways[0] = 1
    total = ways.clone()
    for _ in range(every.horizon):  # by dynamic programming over all states
        ways = torch.zeros_like(ways).index_add(0, every.next.flatten(), (ways.unsqueeze(1) * every.allowed).flatten())
        total += ways
    assert torch.allclose(env.log_paths(every.states).double().exp(), total, rtol=1e-5)
    assert float(total.max()) > 1  # some trees can be built in several orders
    trees = {
        (*b.tolist(), *p.tolist(), *s.tolist())
        for b, p, s in zip(*(every.objects[n] for n in ("block", "parent", "site")), strict=True)
    }
    assert len(trees) == int(every.done.sum())  # no tree is two states


def test_what_may_be_undone_is_exactly_what_may_be_done(enumerated: tuple[FragmentEnv, Any]) -> None:
    env, every = enumerated
    before, action, owner = parents(env, every.states)
    keys = env.key(every.states)
    assert bool(torch.isin(env.key(before), keys).all())  # every parent can be reached
    onward = {(int(keys[a]), int(keys[every.next[a, b]])) for a, b in every.allowed.nonzero().tolist()}
    assert onward == set(zip(env.key(before).tolist(), keys[owner].tolist(), strict=True))
    assert len(action) == int(every.allowed.sum())


@pytest.mark.parametrize("backward", ["uniform", "maxent"])
def test_likelihoods_by_importance_sampling_are_those_of_dynamic_programming(
    enumerated: tuple[FragmentEnv, Any], backward: Any
) -> None:
    env, every = enumerated
    torch.manual_seed(0)
    policy = GraphPolicy(env, width=16, depth=2)
    with torch.no_grad():
        policy.stop.weight.normal_(0, 0.5)
    model = mf.GFlowNet(env, policy, backward=backward)
    _, exact = model.exact(every)
    assert float(exact.exp().sum()) == pytest.approx(1.0)
    found = log_probability(model, every.objects, draws=64, generator=generator())
    assert float((found - exact).abs().max()) < 0.35 and float((found - exact).abs().mean()) < 0.03


def test_a_policy_learns_the_law_of_its_reward() -> None:
    env = FragmentEnv(
        TINY,
        lambda smiles: [0.2 + ("S" in s) + 0.1 * len(s) for s in smiles],
        max_fragments=2,
        min_fragments=1,
        stable=False,
    )
    every = enumerate_env(env)
    torch.manual_seed(0)
    model = mf.GFlowNet(env, GraphPolicy(env, width=24, depth=2))
    before = model.total_variation(every)
    optimiser = torch.optim.Adam(
        [{"params": model.policy.parameters(), "lr": 1e-2}, {"params": [model.log_z], "lr": 0.1}]
    )
    for step in range(120):
        optimiser.zero_grad()
        model.loss_of(model.draw(64, generator=generator(step)))["balance"].backward()
        optimiser.step()
    assert model.total_variation(every) < 0.05 < before


def test_padding_changes_nothing() -> None:
    small, large = (FragmentEnv(TINY, max_fragments=n, stable=False) for n in (3, 6))
    torch.manual_seed(0)
    one, two = GraphPolicy(small, 16, 2, flows=True), GraphPolicy(large, 16, 2, flows=True)
    two.load_state_dict(one.state_dict())
    x = random_molecules(small, 16, generator())
    y = {n: v if n == "done" else torch.nn.functional.pad(v, (0, 3), value=-1) for n, v in x.items()}
    a, b = one(small.observe(x)), two(large.observe(y))
    kept = small.actions
    assert torch.allclose(a[:, :kept], b[:, :kept], atol=1e-5) and torch.allclose(a[:, -1], b[:, -1], atol=1e-5)


def test_changed_and_crossed_molecules_are_states_of_the_environment() -> None:
    env = FragmentEnv(max_fragments=5)
    x = mutated(env, random_molecules(env, 32, generator()), generator(1))
    assert bool(env.is_done(x).all()) and int(env.must_fill(x).max()) == 0
    assert all(Chem.MolFromSmiles(s) is not None for s in env.to_smiles(x))
    found: list[float] = []
    for seed in (0, 1):
        oracle = Oracle(Objective("qed*sa"), 300)
        genetic(env, oracle, seed, population=30, offspring=30)
        assert oracle.used == 300 and len(set(oracle.answers().smiles)) == 300
        found.append(float(oracle.answers().reward[-50:].mean() - oracle.answers().reward[:50].mean()))
    assert min(found) > 0.01 and math.isfinite(max(found))
