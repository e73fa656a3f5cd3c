"""Conditions of crystals and elements exchanged in training: what the network is told, and what it is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from manifoldflow import checkpoint
from manifoldflow.cli import main
from manifoldflow.tasks.crystals.baselines import alike, element_features
from manifoldflow.tasks.crystals.batches import Exchange, exchanged, state_of, training_batches
from manifoldflow.tasks.crystals.conditions import ConditionFeatures, hide, read_conditions, values_of
from manifoldflow.tasks.crystals.elements import COVALENT, ELEMENTS
from manifoldflow.tasks.crystals.energies import single_points
from manifoldflow.tasks.crystals.flow import CrystalConfig, build
from manifoldflow.tasks.crystals.model import NetworkConfig
from manifoldflow.tasks.crystals.prototypes import NAMED
from manifoldflow.tasks.crystals.relax import Relaxer
from manifoldflow.tasks.crystals.sampling import Wanted, draw
from manifoldflow.tasks.crystals.sources import LogNormalCells
from manifoldflow.tasks.crystals.store import CrystalDataset
from manifoldflow.tasks.crystals.structure import Crystal, collate, is_too_dense
from manifoldflow.tasks.crystals.writing import write_crystal

SALT = NAMED["rock_salt"].fill({"A": 10, "X": 16})
CAESIUM = NAMED["cesium_chloride"].fill({"A": 54, "X": 16})
BLENDE = NAMED["zinc_blende"].fill({"A": 29, "X": 15})


def test_conditions_name_their_labels():
    assert read_conditions(["space_group", "energy_above_hull=heat_all"]) == {
        "space_group": "space_group_number",
        "energy_above_hull": "heat_all",
    }
    for words, message in (
        (["colour"], "is none of"),
        (["band_gap="], "is none of"),
        (["band_gap", "band_gap=x"], "twice"),
    ):
        with pytest.raises(ValueError, match=message):
            read_conditions(words)


def test_values_come_from_labels_and_space_groups_from_the_structure():
    crystals = [replace(c, labels={"gap": 1.5} if c is SALT else {}) for c in (SALT, CAESIUM, BLENDE)]
    values = values_of(CrystalDataset(crystals), [2, 0, 1], {"space_group": "space_group_number", "band_gap": "gap"})
    assert values["space_group"].tolist() == [216.0, 225.0, 221.0]
    assert values["band_gap"].isnan().tolist() == [True, False, True] and values["band_gap"][1] == 1.5
    told = [replace(c, labels={"space_group_number": 1.0}) for c in crystals]  # what the data say goes before spglib
    assert values_of(CrystalDataset(told), [0], {"space_group": "space_group_number"})["space_group"].tolist() == [1.0]
    with pytest.raises(ValueError, match="no crystal has the label"):
        values_of(CrystalDataset(crystals), [0], {"band_gap": "nothing"})


def test_hidden_conditions_are_unknown_as_often_as_asked_and_each_alone():
    values = {"a": torch.ones(4000), "b": torch.ones(4000)}
    made = hide(values, 0.3, torch.Generator().manual_seed(0))
    shares = [made[n].isnan().double().mean() for n in ("a", "b")]
    both = (made["a"].isnan() & made["b"].isnan()).double().mean()
    assert all(abs(s - 0.3) < 0.03 for s in shares) and abs(both - 0.09) < 0.02  # 4 standard errors


def test_unknown_conditions_say_nothing_and_known_ones_differ():
    torch.manual_seed(0)
    features = ConditionFeatures(("space_group", "band_gap"), (0, 1.0), (1, 2.0), 8)
    like = torch.zeros(3, 5)
    unknown = {"space_group": torch.full((3,), torch.nan), "band_gap": torch.full((3,), torch.nan)}
    assert features(None, like).eq(0).all() and features(unknown, like).eq(0).all() and features({}, like).eq(0).all()
    known = features({"space_group": torch.tensor([225.0, 221.0, torch.nan])}, like)
    assert known[2].eq(0).all() and not torch.allclose(known[0], known[1])
    gap = features({"band_gap": torch.tensor([0.0, 3.0, torch.nan])}, like)
    assert gap[2].eq(0).all() and not torch.allclose(gap[0], gap[1])
    sum(p.sum() for p in [features({"band_gap": torch.full((3,), torch.nan)}, like)]).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in features.parameters())
    with pytest.raises(ValueError, match="as many means"):
        ConditionFeatures(("band_gap",), (), (), 8)


def test_a_flow_learns_what_a_condition_means():
    """Two cells of one composition, told apart by a number: asked for one of them, that one is made, and either if not asked."""
    torch.manual_seed(0)
    species, frac = np.array([10, 16]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
    small, large = (Crystal(species, frac, length * np.eye(3)) for length in (3.4, 4.6))
    source = LogNormalCells.fit(state_of(collate([small, large]))["lattice"], floor=0.1)
    flow = build(
        CrystalConfig(
            network=NetworkConfig(width=24, layers=1, radial=0),
            cell_mean=source.mean,
            cell_scale=source.scale,
            conditions=("energy_above_hull",),
            condition_mean=(0.5,),
            condition_scale=(0.5,),
        )
    )
    batch = collate([small, large] * 16)
    cond = {"energy_above_hull": torch.tensor([0.0, 1.0] * 16)}
    optimiser = torch.optim.Adam(flow.parameters(), 5e-3)
    g = torch.Generator().manual_seed(0)
    for _ in range(120):
        loss = flow.loss(state_of(batch), mask=batch.mask, cond=hide(cond, 0.3, g), generator=g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    flow.eval()
    shares = []
    for told in ({"energy_above_hull": 0.0}, {"energy_above_hull": 1.0}, None):
        made = draw(flow, [Wanted(2, (10, 16))] * 64, steps=20, seed=1, conditions=told)
        shares.append(np.mean([c.volume > 4.0**3 for c in made]))
    assert shares[0] < 0.2 and shares[1] > 0.8 and 0.25 < shares[2] < 0.75, shares


@pytest.mark.parametrize("known", [[SALT, CAESIUM, BLENDE]])
def test_elements_are_exchanged_for_like_ones_and_volumes_follow_the_radii(known):
    table = alike(known, 3)
    features = element_features()
    present = sorted({int(s) for c in known for s in c.species})
    for s in present:  # the nearest of those that the set has, itself first
        order = sorted(present, key=lambda p: (np.abs(features[p] - features[s]).sum(), p))
        assert table[s, 0] == s and set(table[s]) == set(order[:3])
    assert table[0].tolist() == [0, 0, 0]  # hydrogen is not there: it stays
    batch = collate(known * 40)
    made, is_new = exchanged(batch, Exchange(torch.as_tensor(table), 0.5), torch.Generator().manual_seed(1))
    assert 0.2 < is_new.double().mean() < 0.6  # half, less those that would lose an element or stay as they were
    for i in range(len(batch.mask)):
        before, after = batch.crystal(i), made.crystal(i)
        assert len(set(before.species)) == len(set(after.species)) and np.array_equal(before.frac, after.frac)
        changed = not np.array_equal(before.species, after.species)
        assert changed == bool(is_new[i])
        expected = (COVALENT[after.species] ** 3).sum() / (COVALENT[before.species] ** 3).sum()
        assert after.volume / before.volume == pytest.approx(expected, rel=1e-4)
        assert all(b in table[a] for a, b in zip(before.species, after.species, strict=True))
    assert len({int(s) for s in made.species[made.mask]}) > 3 and int(made.species.max()) < ELEMENTS


def test_batches_tell_what_was_exchanged_and_hide_its_numbers():
    known = [SALT, CAESIUM, BLENDE] * 20
    batch = collate(known)
    conditions = {"space_group": torch.full((60,), 225.0), "band_gap": torch.ones(60)}
    swaps = Exchange(torch.as_tensor(alike(known, 3)), 0.5)
    made = next(training_batches(batch, 60, 6400, 3, exchange=swaps, conditions=conditions, hidden=0.0)(0))
    told = made["cond"]["prototype"]
    assert set(told.tolist()) == {0.0, -1.0}
    assert torch.equal(made["cond"]["band_gap"].isnan(), told < 0) and made["cond"]["space_group"].eq(225).all()
    again = next(training_batches(batch, 60, 6400, 3, exchange=swaps, conditions=conditions, hidden=0.0)(0))
    assert torch.equal(again["x"]["species"], made["x"]["species"])


def test_training_with_conditions_makes_a_model_that_can_be_asked(tmp_path, capsys):
    folder = tmp_path / "set"
    for k, c in enumerate((SALT, CAESIUM, BLENDE)):
        write_crystal(folder / f"{k}.cif", c)
    words = ["train", "crystals", "--data", str(folder), "--out", str(tmp_path / "run"), "--val", "0", "--test", "0"]
    small = ["--model.network.width", "16", "--model.network.layers", "1", "--training.max_steps", "2"]
    assert main([*words, *small, "--conditions", "[space_group]", "--exchange", "0.5"]) == 0
    run = str(tmp_path / "run")
    assert checkpoint.load(run).config["conditions"] == ("space_group",) or checkpoint.load(run).config[
        "conditions"
    ] == ["space_group"]
    made = [
        "sample",
        "crystals",
        "--checkpoint",
        run,
        "--formula",
        "NaCl",
        "--num",
        "2",
        "--steps",
        "2",
        "--choose",
        "2",
    ]
    assert main([*made, "--space-group", "225", "--out", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    for option, message in (
        (["--space-group", "231"], "1 to 230"),
        (["--band-gap", "nan"], "expected float"),
        (["--band-gap", "1"], "its conditions are space_group"),
    ):
        assert main([*made, *option, "--out", str(tmp_path / "b")]) == 2
        assert message in capsys.readouterr().err
    assert main([*words, "--init", run, "--conditions", "[band_gap]"]) == 2
    assert "has the label" in capsys.readouterr().err
    assert main([*words, "--conditions", "[smell]"]) == 2 and "is none of" in capsys.readouterr().err


def test_atoms_packed_beyond_any_solid_get_no_energy_and_the_rest_goes_on():
    packed = Crystal(np.array([0, 0]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), 0.5 * np.eye(3))
    assert is_too_dense(packed) and not is_too_dense(SALT)
    diamond = NAMED["diamond"].fill({"A": 5})
    assert not is_too_dense(diamond)
    energies = single_points([packed, SALT])
    assert np.isnan(energies[0]) and np.isfinite(energies[1])
    with Relaxer(steps=2, timeout=60) as relaxer:
        found = dict(relaxer.map([packed, SALT]))
    assert "denser than any solid" in found[0].fault and found[1].fault == ""
