"""Backbone metrics against biotite, scipy, closed forms and what is known of real chains."""

import math

import numpy as np
import pytest
import torch

from manifoldflow.tasks.proteins import metrics
from testkit.shared import SHARED_DATA, needs_shared_data

DATA = SHARED_DATA / "proteins"


@pytest.fixture(scope="module")
def real():
    """30 real chains as a padded batch: coords, mask, residue_index."""
    data = np.load(DATA / "backbones.npz")
    offset = data["offset"]
    chains = range(0, 600, 20)
    width = max(int(offset[i + 1] - offset[i]) for i in chains)
    coords, mask = torch.zeros(30, width, 4, 3), torch.zeros(30, width, dtype=torch.bool)
    index = torch.zeros(30, width, dtype=torch.long)
    for b, i in enumerate(chains):
        part = slice(offset[i], offset[i + 1])
        n = part.stop - part.start
        coords[b, :n], mask[b, :n] = torch.tensor(data["coords"][part]), True
        breaks = np.concatenate([[0], np.cumsum(data["break_after"][part])[:-1]])
        index[b, :n] = torch.arange(n) + 33 * torch.tensor(breaks)
    return coords, mask, index


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everything(n):
    return torch.ones(1, n, dtype=torch.bool)


def test_torsions_and_angles_equal_biotite():
    structure = pytest.importorskip("biotite.structure")
    coords = noise(1, 12, 4, 3)
    a = structure.AtomArray(48)
    a.coord = coords.reshape(-1, 3).numpy().astype(np.float32)
    a.atom_name = np.array(["N", "CA", "C", "O"] * 12)
    a.res_id, a.chain_id = np.repeat(np.arange(1, 13), 4), np.array(["A"] * 48)
    a.res_name = np.array(["GLY"] * 48)
    expected = structure.dihedral_backbone(a)
    ours = metrics.torsions(coords, everything(12))
    for name, values in zip(("phi", "psi", "omega"), expected, strict=True):
        measured, valid = ours[name]
        assert np.array_equal(np.isfinite(values), valid[0].numpy())
        difference = measured[0][valid[0]] - torch.tensor(values[np.isfinite(values)])
        assert torch.remainder(difference + math.pi, 2 * math.pi).sub(math.pi).abs().max() < 1e-5
    n, ca, c, _ = coords[0].unbind(1)
    angles = metrics.bond_angles(coords, everything(12))
    pairs = {"n_ca_c": (n, ca, c), "ca_c_n": (ca[:-1], c[:-1], n[1:]), "c_n_ca": (c[:-1], n[1:], ca[1:])}
    for name, atoms in pairs.items():
        truth = structure.angle(*(x.numpy() for x in atoms))
        assert np.abs(angles[name][0][0].numpy() - truth).max() < 1e-6


def test_bond_lengths_are_the_distances_between_their_atoms():
    coords = noise(2, 7, 4, 3)
    lengths = metrics.bond_lengths(coords, torch.ones(2, 7, dtype=torch.bool))
    for name, (i, j, step) in {"n_ca": (0, 1, 0), "ca_c": (1, 2, 0), "c_o": (2, 3, 0), "c_n": (2, 0, 1)}.items():
        for b in range(2):
            for k in range(7 - step):
                expected = math.dist(coords[b, k, i].tolist(), coords[b, k + step, j].tolist())
                assert lengths[name][0][b, k].item() == pytest.approx(expected, abs=1e-12)


def test_nothing_is_measured_across_a_break_or_into_padding():
    coords, mask = noise(1, 8, 4, 3), torch.tensor([[True] * 6 + [False] * 2])
    index = torch.tensor([[0, 1, 2, 36, 37, 38, 39, 40]])
    link = [True, True, False, True, True, False, False]
    assert metrics.ca_distances(coords, mask, index)[1][0].tolist() == link
    assert metrics.bond_lengths(coords, mask, index)["c_n"][1][0].tolist() == link
    torsions = metrics.torsions(coords, mask, index)
    assert torsions["phi"][1][0].tolist() == [False, *link]
    assert torsions["psi"][1][0].tolist() == [*link, False]


def test_angles_are_exact_where_acos_loses_digits():
    tiny = 1e-6
    a, b = torch.tensor([1.0, tiny, 0.0]), torch.zeros(3)
    assert metrics.angle(a, b, torch.tensor([1.0, 0.0, 0.0])).item() == pytest.approx(tiny, rel=1e-5)
    assert math.pi - metrics.angle(a, b, torch.tensor([-1.0, 0.0, 0.0])).item() == pytest.approx(tiny, abs=2e-7)


def test_clashes_count_pairs_two_or_more_apart_once():
    ca = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 0, 0], [50, 0, 0], [0, 2.9, 0], [0, 0, 3.01], [0, 0, 0]]).float()
    coords = ca[None, :, None].expand(1, 7, 4, 3)
    mask = torch.tensor([[True] * 6 + [False]])
    assert metrics.clashes(coords, mask).tolist() == [2]  # 0-2 and 0-4; 1-4 is 3.07 away; the last is padding
    assert metrics.clashes(coords, torch.ones_like(mask)).tolist() == [2 + 4]  # it sits on 0, near 1, 2 and 4


def test_radius_of_gyration_of_a_rod_is_its_closed_form():
    n, step = 50, 3.8
    coords = torch.zeros(1, 60, 4, 3)
    coords[0, :n, 1, 0] = step * torch.arange(n)
    coords[0, n:] = 1e3
    mask = torch.arange(60)[None] < n
    assert metrics.radius_of_gyration(coords, mask).item() == pytest.approx(step * math.sqrt((n**2 - 1) / 12), rel=1e-6)


def test_rg_trend_recovers_an_exact_power_law_and_the_band_is_20_percent():
    lengths = torch.tensor([50, 80, 128, 256])
    rg = 2.2 * lengths.double() ** 0.38
    a, b = metrics.rg_trend(lengths, rg)
    assert (a, b) == (pytest.approx(2.2), pytest.approx(0.38))
    scaled = rg * torch.tensor([0.79, 0.81, 1.19, 1.21])
    assert metrics.follows_rg_trend(lengths, scaled, (a, b)).tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="at least two different lengths"):
        metrics.rg_trend(torch.tensor([60, 60]), torch.tensor([10.0, 11.0]))


def test_js_distance_equals_scipy_and_is_bounded_by_one_bit():
    scipy_distance = pytest.importorskip("scipy.spatial.distance").jensenshannon
    p, q = noise(36, 36, seed=1).exp(), noise(36, 36, seed=2).exp()
    p[:10] = 0
    expected = scipy_distance(p.flatten().numpy(), q.flatten().numpy(), base=2)
    assert metrics.js_distance(p, q).item() == pytest.approx(expected, rel=1e-9)
    assert metrics.js_divergence(p, q).item() == pytest.approx(expected**2, rel=1e-9)
    assert metrics.js_divergence(p, p).item() == pytest.approx(0, abs=1e-12)
    assert metrics.js_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).item() == pytest.approx(1.0)


@needs_shared_data
def test_ramachandran_histogram_equals_numpy(real):
    coords, mask, index = real
    angles = metrics.torsions(coords, mask, index)
    valid = angles["phi"][1] & angles["psi"][1]
    phi, psi = (angles[name][0][valid].double().numpy() for name in ("phi", "psi"))
    counts, _, _ = np.histogram2d(phi, psi, bins=18, range=[[-math.pi, math.pi]] * 2)
    ours = metrics.ramachandran(coords, mask, index, bins=18)
    assert np.abs(ours.numpy() - counts / counts.sum()).sum() < 2e-4  # an angle on an edge may fall either way
    smooth = metrics.ramachandran(coords, mask, index, bins=18, pseudo_count=0.5)
    assert smooth.min().item() == pytest.approx(0.5 / (counts.sum() + 0.5 * 18**2), rel=1e-6)


@needs_shared_data
def test_real_chains_pass_the_thresholds_that_samples_are_held_to(real):
    reference = metrics.Reference.build(*real, traces=False)
    result = metrics.summarize(*real, reference=reference)
    assert result["chains"] == 30 and result["residues"] == real[1].sum()
    assert result["ca_ca_within"] > 0.98 and result["c_n_within"] > 0.98
    assert result["clash_chains"] <= 0.05
    assert 0.45 < result["helix_and_strand"] < 0.75 and result["helix"] > 0.1 and result["strand"] > 0.1
    assert result["rg_follows_trend"] > 0.8
    assert 0.3 < reference.trend[1] < 0.45
    assert result["rama_js_distance"] == pytest.approx(0, abs=1e-6)
    assert result["omega_trans"] > 0.98
    # Engh & Huber 1991
    for name, expected in {"n_ca": 1.458, "ca_c": 1.525, "c_o": 1.231, "c_n": 1.329}.items():
        assert result[f"{name}_mean"] == pytest.approx(expected, abs=0.01)
    for name, expected in {"n_ca_c": 111.2, "ca_c_n": 116.2, "c_n_ca": 121.7}.items():
        assert result[f"{name}_mean"] == pytest.approx(expected, abs=1.5)
    assert all(isinstance(value, float) and math.isfinite(value) for value in result.values())


@needs_shared_data
def test_damage_shows_in_the_number_that_measures_it(real):
    coords, mask, index = (t[:20] for t in real)
    reference = metrics.Reference.build(*real, traces=False)
    before = metrics.summarize(coords, mask, index, reference)
    shaken = metrics.summarize(coords + 0.5 * noise(*coords.shape).float(), mask, index, reference)
    assert shaken["c_n_within"] < 0.5 and shaken["ca_ca_within"] < 0.5
    assert shaken["rama_js_distance"] > before["rama_js_distance"] + 0.1
    assert shaken["helix_and_strand"] < before["helix_and_strand"]
    small = metrics.summarize(coords * 0.7, mask, index, reference)
    assert small["clash_chains"] > 0.7 and small["rg_follows_trend"] < 0.5 * before["rg_follows_trend"]
    mirrored = metrics.summarize(coords * torch.tensor([1.0, 1.0, -1.0]), mask, index, reference)
    assert mirrored["rama_js_distance"] > 0.7 and mirrored["ca_ca_within"] == before["ca_ca_within"]


@needs_shared_data
def test_a_row_of_the_table_is_the_same_alone_and_in_a_padded_batch(real):
    coords, mask, index = real
    reference = metrics.Reference.build(*real, traces=False)
    batched = metrics.per_chain(coords, mask, index, reference)
    n = int(mask[4].sum())
    alone = metrics.per_chain(coords[4:5, :n], mask[4:5, :n], index[4:5, :n], reference)
    for name, column in batched.items():
        assert column.shape == (30,)
        assert column[4].item() == pytest.approx(alone[name][0].item(), abs=1e-5), name


def test_one_residue_chains_give_nan_for_what_has_no_pair_and_no_error():
    table = metrics.per_chain(noise(1, 1, 4, 3).float(), everything(1))
    assert table["ca_ca_within"].isnan().all() and table["clashes"].tolist() == [0]


@needs_shared_data
def test_tm_scores_enter_the_summary_on_request(real):
    short = real[1].sum(1).argsort()[:6]
    coords, mask, index = (t[short[:3], :128] for t in real)
    reference = metrics.Reference.build(*(t[short, :128] for t in real))
    result = metrics.summarize(coords, mask, index, reference, tm_scores=True)
    assert result["novelty_tm"] == pytest.approx(1.0, abs=1e-3)  # the samples are in the reference
    assert 0.15 < result["pairwise_tm"] < 0.5
