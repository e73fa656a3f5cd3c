"""Substituted prototypes laid over their truths, and candidates that the flow judges."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import manifoldflow as mf
from manifoldflow.tasks.crystals.baselines import Substitution, relatives
from manifoldflow.tasks.crystals.batches import Guesses, start_from, state_of, training_batches
from manifoldflow.tasks.crystals.consensus import differences
from manifoldflow.tasks.crystals.denovo import kept_apart
from manifoldflow.tasks.crystals.elements import ELEMENTS
from manifoldflow.tasks.crystals.flow import CrystalConfig, annealed, build
from manifoldflow.tasks.crystals.model import NetworkConfig
from manifoldflow.tasks.crystals.pairs import axis_changes, guess_pairs, laid_over
from manifoldflow.tasks.crystals.picking import doubt
from manifoldflow.tasks.crystals.predicting import candidates
from manifoldflow.tasks.crystals.prototypes import NAMED
from manifoldflow.tasks.crystals.refining import combined, doubts, ranked, refined
from manifoldflow.tasks.crystals.structure import Crystal, collate


def perovskite(a: int, b: int, x: int, edge: float = 4.0, off: float = 0.0) -> Crystal:
    frac = np.array([[0, 0, 0], [0.5, 0.5, 0.5 + off], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) % 1
    return Crystal(np.array([a, b, x, x, x]), frac, edge * np.eye(3), name=f"{a}-{b}-{x}")


def low_symmetry(seed: int, n: int = 6) -> Crystal:
    rng = np.random.default_rng(seed)
    cell = np.diag([4.0, 4.6, 5.3]) + 0.3 * rng.normal(size=(3, 3))
    return Crystal(rng.integers(3, 6, n), rng.random((n, 3)), cell).reduced()


@pytest.mark.parametrize("number", [0, 7, 30, 47])
def test_a_crystal_described_otherwise_is_laid_exactly_over_itself(number):
    truth = low_symmetry(1)
    rng = np.random.default_rng(number)
    change, order = axis_changes()[number], rng.permutation(len(truth))
    other = replace(
        truth,
        species=truth.species[order],
        frac=(truth.frac[order] @ np.linalg.inv(change) + rng.random(3)) % 1,
        cell=change @ truth.cell,
    )
    laid, off = laid_over(other, truth)
    assert off < 1e-6 and (laid.species == truth.species).all()
    assert np.abs(laid.metric - truth.metric).max() < 1e-9
    gap = laid.frac - truth.frac
    assert np.abs(gap - np.round(gap)).max() < 1e-6
    with pytest.raises(ValueError, match="guess"):
        laid_over(perovskite(10, 20, 7), truth)


def test_changes_of_axes_are_all_different_and_keep_volumes():
    changes = axis_changes()
    assert len({tuple(m.ravel()) for m in changes}) == 48
    assert (np.abs(np.linalg.det(changes)).round() == 1).all()


def test_pairs_join_crystals_of_one_structure_and_other_formulas():
    known = [perovskite(37, 21, 7, 3.9), perovskite(55, 21, 7, 4.0, 0.02), perovskite(19, 40, 8, 4.1)]
    rows, guesses = guess_pairs(known, known)
    assert set(rows) == {0, 1, 2}
    for row, guess in zip(rows, guesses, strict=True):
        assert (guess.species == known[row].species).all() and guess.name != known[row].name
        gap = guess.frac - known[row].frac
        assert np.abs(gap - np.round(gap)).max() < 0.1


def test_batches_from_guesses_say_so_and_start_near_them():
    known = [perovskite(37, 21, 7), perovskite(55, 21, 7, off=0.02)]
    crystals = collate(known)
    guesses = Guesses(torch.tensor([0, 1]), collate([known[1], known[0]]), share=0.5, blur=0.01)
    source = training_batches(crystals, 2, 100, 0, guesses)(0)
    made = [next(source) for _ in range(20)]
    paired = [m for m in made if "x0" in m]
    assert 4 <= len(paired) <= 16
    for m in made:
        assert (m["cond"]["prototype"] == float("x0" in m)).all()
    again = training_batches(crystals, 2, 100, 0, guesses)(5)
    assert ("x0" in next(again)) == ("x0" in made[5])
    flow = build(CrystalConfig(network=NetworkConfig(width=16, layers=1)))
    start = start_from(crystals, 0.01, torch.Generator().manual_seed(0))
    assert (start["species"] == ELEMENTS).all()
    gap = start["frac"] - crystals.frac
    assert 0 < (gap - gap.round()).abs().max() < 0.06
    assert torch.allclose(start["lattice"], state_of(crystals)["lattice"], atol=0.5)
    loss = flow.loss(paired[0]["x"], mask=paired[0]["mask"], x0=paired[0]["x0"], cond=paired[0]["cond"])
    assert loss.isfinite()


def test_doubt_is_small_for_what_the_flow_makes():
    """A flow that was trained on one crystal for a moment prefers it to a random one."""
    torch.manual_seed(0)
    flow = build(CrystalConfig(network=NetworkConfig(width=32, layers=2), cell_scale=(0.1,) * 6))
    truth = perovskite(37, 21, 7)
    batch = collate([truth] * 16)
    optimiser = torch.optim.Adam(flow.parameters(), 3e-3)
    g = torch.Generator().manual_seed(0)
    for _ in range(90):
        loss = flow.loss(state_of(batch), mask=batch.mask, generator=g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    noise = replace(truth, frac=np.random.default_rng(0).random((5, 3)))
    moved = replace(truth, frac=(truth.frac + 0.3) % 1)
    values = doubt(flow, collate([truth, noise, moved]), draws=8)
    assert values[0] < 0.8 * values[1] and values[2] < 0.8 * values[1]
    assert flow.pin is not None and torch.equal(values, doubt(flow, collate([truth, noise, moved]), draws=8))


@pytest.mark.parametrize("choose", [1, 3])
def test_candidates_are_of_the_cells_asked_for_and_repeat(choose):
    torch.manual_seed(0)
    flow = build(CrystalConfig(network=NetworkConfig(width=16, layers=1)))
    cells = [[7, 7, 21, 37], [16, 10], [5, 6, 7, 8, 9, 10]]
    made = candidates(flow, cells, 2, steps=3, choose=choose)
    assert [sorted(c.species.tolist()) for some in made for c in some] == [sorted(s) for s in cells for _ in range(2)]
    again = candidates(flow, cells, 2, steps=3, choose=choose)
    assert all(
        np.array_equal(a.frac, b.frac) for x, y in zip(made, again, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_a_known_cell_of_as_many_atoms_comes_first_where_the_cell_is_given():
    salt = Crystal(np.array([10, 16]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), 4.0 * np.eye(3), "small")
    double = Crystal(np.array([18, 18, 16, 16]), np.random.default_rng(0).random((4, 3)), 5.0 * np.eye(3), "double")
    rule = Substitution([double, salt])
    assert [rule.known[row].name for _, row, _ in rule.nearest("NaBr", 2)] == ["small", "double"]
    assert [rule.known[row].name for _, row, _ in rule.nearest([10, 10, 34, 34], 2)] == ["double", "small"]
    near, far = (distance for distance, *_ in rule.nearest([18, 18, 34, 34], 2))
    assert far - near > rule.other_size


def test_guesses_after_the_flow_are_the_same_compounds_ranked_as_asked():
    torch.manual_seed(0)
    flow = build(CrystalConfig(network=NetworkConfig(width=16, layers=1)))
    known = [perovskite(37, 21, 7), perovskite(55, 21, 7, 4.2, 0.02), low_symmetry(3), low_symmetry(4, 7)]
    guesses = [replace(c, labels={"distance": float(k)}) for k, c in enumerate(known)]
    made = refined(flow, guesses, steps=2)
    assert [sorted(c.species.tolist()) for c in made] == [sorted(c.species.tolist()) for c in guesses]
    assert [c.labels["distance"] for c in made] == [0, 1, 2, 3]  # in the order of the guesses, whatever their sizes
    assert all(np.array_equal(a.frac, b.frac) for a, b in zip(made, refined(flow, guesses, steps=2), strict=True))
    values = doubts(flow, made, draws=1)
    assert values.shape == (4,) and np.isfinite(values).all()
    names = [replace(c, name=str(k)) for k, c in enumerate(made)]

    def order(weight: float) -> list[str]:
        return [c.name for c in ranked([names], [[1.0, 0.1, 0.2, 5.0]], weight)[0]]

    assert order(0) == ["0", "1", "2", "3"] and order(float("inf")) == ["1", "2", "0", "3"]
    assert order(0.7)[0] == "1"  # 1 + 0.7 log 0.1 = -0.61 before 0, and 2 + 0.7 log 0.2 = 0.87


def test_relatives_are_new_compounds_of_like_elements_in_known_structures():
    known = [perovskite(37, 21, 7), perovskite(55, 39, 8, 4.2), perovskite(19, 40, 16), perovskite(3, 22, 34)]
    made = relatives(known, 20, seed=1, nearest=3)
    assert len(made) == 20 and not {c.formula for c in made} & {c.formula for c in known}
    assert all(c.anonymous == (1, 1, 3) and c.labels["parent"] in {k.name for k in known} for c in made)
    again = relatives(known, 20, seed=1, nearest=3)
    assert all(np.array_equal(a.species, b.species) for a, b in zip(made, again, strict=True))


def test_crystals_with_close_contacts_are_drawn_again_and_counted():
    good, bad = perovskite(37, 21, 7, 4.0), perovskite(37, 21, 7, 2.0)
    seeds = []

    def drawn(num: int, seed: int) -> list[Crystal]:
        seeds.append(seed)
        return [good, bad] * (num // 2)

    made, tried = kept_apart(drawn, 6, 0.7, seed=3)
    assert [c is good for c in made] == [True] * 6 and tried == 12 and seeds == [3, 1003]
    assert kept_apart(drawn, 6, 0.0)[1] == 6
    assert kept_apart(lambda num, seed: [bad] * num, 4, 0.7, rounds=3) == ([], 12)


def test_a_start_from_a_guess_is_not_annealed_and_the_flow_keeps_its_slope():
    torch.manual_seed(0)
    flow = build(CrystalConfig(network=NetworkConfig(width=16, layers=1), anneal=8.0))
    with torch.no_grad():
        for parameter in flow.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    guess = replace(low_symmetry(3), labels={"distance": 0.0})
    made = refined(flow, [guess], steps=3)[0]
    assert flow.path["frac"].sample_schedule == mf.Annealed(8.0)
    plain = refined(annealed(flow, 0.0), [guess], steps=3)[0]
    assert np.array_equal(made.frac, plain.frac) and not np.allclose(made.frac, guess.frac)


def test_candidates_by_substitution_are_of_different_structure_types_first():
    """Three salts of rock salt and one of CsCl known: the second candidate is CsCl, not another rock salt."""
    salts = [NAMED["rock_salt"].fill({"A": a, "X": x}) for a, x in ((10, 16), (18, 16), (10, 34))]
    small = [replace(c, name=c.formula) for c in (*salts, NAMED["cesium_chloride"].fill({"A": 54, "X": 34}))]
    made = Substitution(small).candidates("KBr", 3)
    plain = Substitution(small, distinct=False).candidates("KBr", 3)
    assert [c.labels["parent"] for c in made].count("CsBr") == 1 and len(made) == 3
    assert "CsBr" not in [c.labels["parent"] for c in plain[:2]] and made[0].labels == plain[0].labels
    distance = [c.labels["distance"] for c in made]
    assert distance == sorted(distance)
    # A and B of a perovskite change places: the same template is a second type
    ordered = [NAMED["perovskite"].fill({"A": 55, "B": 21, "X": 7})]
    both = Substitution(ordered).candidates("SrZrO3", 2)
    assert len(both) == 2 and differences(collate(both[:1]), collate(both[1:]))[0] > 0.2
    assert len(Substitution(ordered, distinct=False).candidates("SrZrO3", 2)) == 1


def test_guesses_and_draws_are_weighed_together():
    """Draws that agree with the second guess bring it to the front; alone, the nearest guess stays there."""
    rng = np.random.default_rng(2)
    species, cell = np.array([10, 10, 16, 16]), 5.0 * np.eye(3)
    first, second = (
        Crystal(species, rng.random((4, 3)), cell, labels={"distance": distance}) for distance in (1.0, 1.2)
    )
    larger = Crystal(np.tile(species, 2), rng.random((8, 3)), 6.3 * np.eye(3), labels={"distance": 0.5})
    draws = [Crystal(species, second.frac + 0.005 * rng.normal(size=(4, 3)), cell) for _ in range(5)]
    assert combined([first, second], [], 2) == [first, second]
    made = combined([larger, first, second], draws, 4, share=0.5)
    assert made[0] is second or any(made[0] is d for d in draws)
    assert any(c is first for c in made[:2])  # then what the draws do not say
    assert combined([larger, first, second], draws, 9, share=0.5)[-1] is larger  # of another size: last
    assert combined([], draws, 2)[0] in draws and combined([larger], [], 2) == [larger] and combined([], [], 2) == []
