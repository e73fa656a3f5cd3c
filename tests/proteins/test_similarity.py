"""TM-score and RMSD against scipy, brute force, and TM-align itself where `tmtools` is installed."""

import itertools

import numpy as np
import pytest
import torch

from manifoldflow.tasks.proteins import similarity as sim
from testkit.peptide import HELIX, STRAND, peptide
from testkit.shared import SHARED_DATA, needs_shared_data

DATA = SHARED_DATA / "proteins"


@pytest.fixture(scope="module")
def chains():
    """CA traces of real chains of at most 128 residues."""
    data = np.load(DATA / "backbones.npz")
    offset = data["offset"]
    ca = torch.tensor(data["coords"][:, 1])
    traces = [ca[a:b] for a, b in itertools.pairwise(offset.tolist()) if b - a <= 128]
    return traces[::3]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_rotations(n, seed=0):
    q = torch.nn.functional.normalize(torch.randn(n, 4, generator=generator(seed)), dim=-1)
    from scipy.spatial.transform import Rotation

    return torch.tensor(Rotation.from_quat(q.numpy()).as_matrix()).float()


def walk(n, seed):
    """A compact random chain: steps of 3.8 angstrom pulled to the origin, self-avoiding."""
    g, points = generator(seed), [torch.zeros(3)]
    while len(points) < n:
        trials = torch.nn.functional.normalize(torch.randn(40, 3, generator=g), dim=-1) * 3.8 + points[-1]
        free = torch.cdist(trials, torch.stack(points)[:-1]).amin(1) > 4.0 if len(points) > 1 else torch.ones(40).bool()
        cost = trials.norm(dim=-1) + 12 * torch.rand(40, generator=g) + 1e3 * ~free
        points.append(trials[cost.argmin()])
    return torch.stack(points)


def batch_of(traces):
    return sim.pad_traces(traces)


def test_rmsd_equals_scipy_and_ignores_padding():
    from scipy.spatial.transform import Rotation

    x, y = torch.randn(5, 30, 3, generator=generator(1)) * 9, torch.randn(5, 30, 3, generator=generator(2)) * 9
    mask = torch.arange(30) < torch.tensor([30, 3, 12, 25, 7])[:, None]
    ours = sim.rmsd(x, y, mask)
    for b in range(5):
        p, q = (t[b][mask[b]].double().numpy() for t in (x, y))
        _, root_sum = Rotation.align_vectors(p - p.mean(0), q - q.mean(0))
        assert ours[b].item() == pytest.approx(root_sum / np.sqrt(len(p)), abs=1e-4)


@pytest.mark.parametrize("case", ["general", "mirror", "plane", "line"])
def test_superpose_is_a_proper_rotation_and_optimal_also_for_degenerate_points(case):
    x = torch.randn(4, 20, 3, generator=generator(3), dtype=torch.float64)
    x = {"mirror": x, "general": x, "plane": x * torch.tensor([1, 1, 0.0]), "line": x * torch.tensor([1, 0, 0.0])}[case]
    y = (x @ random_rotations(4).double().mT + 5) if case != "mirror" else x * torch.tensor([1.0, 1.0, -1.0])
    rotation, shift = sim.superpose(x, y, torch.ones(4, 20, dtype=torch.float64))
    assert (rotation @ rotation.mT - torch.eye(3)).abs().max() < 1e-9
    assert (torch.linalg.det(rotation) - 1).abs().max() < 1e-9
    if case == "mirror":  # Kabsch by SVD with the reflection taken out
        h = (x - x.mean(1, keepdim=True)).mT @ (y - y.mean(1, keepdim=True))
        s = torch.linalg.svdvals(h)
        best = s[:, 0] + s[:, 1] - s[:, 2]
        assert ((rotation @ h).diagonal(dim1=1, dim2=2).sum(-1) - best).abs().max() < 1e-9
    else:
        assert (sim.move(x, (rotation, shift)) - y).abs().max() < 1e-6


def test_d0_is_zhang_and_skolnicks():
    assert sim.d0(torch.tensor([100])).item() == pytest.approx(1.24 * 85 ** (1 / 3) - 1.8, rel=1e-6)
    assert sim.d0(torch.tensor([1, 15, 18])).tolist() == [0.5, 0.5, 0.5]


@needs_shared_data
def test_a_chain_is_identical_to_itself_in_any_pose(chains):
    x, mask = batch_of(chains[:20])
    moved = x @ random_rotations(20).mT + 40 * torch.randn(20, 1, 3, generator=generator(4))
    assert (sim.tm_score_aligned(x, moved, mask) - 1).abs().max() < 1e-4
    result = sim.tm_align(x, moved, mask, mask)
    assert (result.score_x - 1).abs().max() < 1e-3 and (result.score_y - 1).abs().max() < 1e-3
    assert (result.index[mask] == torch.arange(x.shape[1]).expand(20, -1)[mask]).all()
    assert (result.index[~mask] == -1).all()


@needs_shared_data
def test_aligned_score_beats_brute_force_over_superpositions_of_all_windows(chains):
    x = next(c for c in chains if len(c) >= 80)[:80]
    bend = random_rotations(1, seed=9)[0]
    y = torch.cat([x[:45], (x[45:] - x[44]) @ bend.mT + x[44]])  # two domains: no single superposition fits all
    y = y + 0.7 * torch.randn(80, 3, generator=generator(5))
    windows = [(a, b) for a in range(0, 80, 4) for b in range(a + 8, 81, 4)]
    weight = torch.stack([((torch.arange(80) >= a) & (torch.arange(80) < b)).float() for a, b in windows])
    xs, ys = x.expand(len(windows), -1, -1), y.expand(len(windows), -1, -1)
    squared = (sim.move(xs, sim.superpose(xs, ys, weight)) - ys).square().sum(-1)
    brute = (1 / (1 + squared / sim.d0(torch.tensor([80])) ** 2)).mean(1).max().item()
    assert brute < 0.8
    assert sim.tm_score_aligned(x[None], y[None]).item() >= brute - 1e-3


def test_alignment_by_dynamic_programming_equals_an_exhaustive_search():
    def best_by_search(score, gap):
        n, m = score.shape
        best = 0.0
        for k in range(1, min(n, m) + 1):
            for rows in itertools.combinations(range(n), k):
                for columns in itertools.combinations(range(m), k):
                    steps = zip(itertools.pairwise(rows), itertools.pairwise(columns), strict=True)
                    gaps = sum((b - a, d - c) != (1, 1) for (a, b), (c, d) in steps)
                    best = max(best, score[list(rows), list(columns)].sum() - gap * gaps)
        return best

    scores = torch.rand(12, 5, 6, generator=generator(6)) ** 2
    mask_x = torch.arange(5) < torch.tensor([5, 4, 3] * 4)[:, None]
    mask_y = torch.arange(6) < torch.tensor([6, 6, 4, 5] * 3)[:, None]
    index = sim._align(scores.clone(), mask_x, mask_y, gap=0.3)
    for b in range(12):
        n, m = int(mask_x[b].sum()), int(mask_y[b].sum())
        pairs = [(i, int(j)) for i, j in enumerate(index[b]) if j >= 0]
        assert all(i < n and j < m for i, j in pairs)
        assert all(a < c and b_ < d for (a, b_), (c, d) in itertools.pairwise(pairs))
        gaps = sum((c - a, d - b_) != (1, 1) for (a, b_), (c, d) in itertools.pairwise(pairs))
        value = sum(float(scores[b, i, j]) for i, j in pairs) - 0.3 * gaps
        assert value == pytest.approx(best_by_search(scores[b, :n, :m].numpy(), 0.3), abs=1e-5)


@needs_shared_data
def test_alignment_finds_a_deletion_and_a_rearranged_end(chains):
    x = chains[3]
    n = len(x)
    y = torch.cat([x[:30], x[42:]]) @ random_rotations(1, seed=3)[0].mT + 10  # residues 30..41 cut out
    (xs, mask_x), (ys, mask_y) = batch_of([x]), batch_of([y])
    result = sim.tm_align(xs, ys, mask_x, mask_y)
    assert result.score_y.item() > 0.97
    expected = torch.cat([torch.arange(30), torch.full((12,), -1), torch.arange(30, n - 12)])
    assert (result.index[0] == expected).float().mean() > 0.95


def test_unrelated_random_chains_score_like_unrelated_proteins():
    scores = sim.pairwise_tm([walk(90, seed) for seed in range(8)])
    off_diagonal = scores[~torch.eye(8, dtype=torch.bool)]
    assert 0.15 < off_diagonal.mean() < 0.35
    assert off_diagonal.max() < 0.45


@needs_shared_data
def test_pairwise_is_symmetric_and_its_normalisations_are_ordered(chains):
    some = [chains[i] for i in (0, 4, 9, 14, 30)]
    mean, shorter, longer = (sim.pairwise_tm(some, normalize=kind) for kind in ("mean", "shorter", "longer"))
    assert torch.equal(mean, mean.T) and (mean.diagonal() == 1).all()
    assert (longer <= mean).all() and (mean <= shorter).all() and shorter.max() <= 1.0001
    assert ((longer + shorter) / 2 - mean).abs().max() < 1e-6
    assert sim.mean_pairwise_tm(some) == pytest.approx(mean[~torch.eye(5, dtype=torch.bool)].mean().item(), abs=1e-5)
    with pytest.raises(ValueError, match="normalize must be one of mean, shorter, longer, got 'max'"):
        sim.pairwise_tm(some, normalize="max")


@needs_shared_data
def test_the_score_of_a_pair_does_not_depend_on_its_pose_or_company(chains):
    pairs = [(0, 5), (7, 2), (11, 20)]
    moved = [c @ r.mT + 25 for c, r in zip(chains[:21], random_rotations(21, seed=8), strict=True)]
    rows, columns = (torch.tensor(side) for side in zip(*pairs, strict=True))
    together = sim._score_pairs(chains, chains, rows, columns, 2)[0]
    posed = sim._score_pairs(chains, moved, rows, columns, 2)[0]
    alone = torch.cat([sim._score_pairs(chains, chains, rows[k : k + 1], columns[k : k + 1], 2)[0] for k in range(3)])
    assert (together - posed).abs().max() < 0.02  # a local search may end elsewhere by rounding
    assert (together - alone).abs().max() < 0.02


@needs_shared_data
def test_novelty_finds_the_chain_a_sample_came_from(chains):
    g = generator(7)
    samples = [chains[i] + 1.0 * torch.randn(chains[i].shape, generator=g) for i in (2, 17, 33)]
    samples = [s @ r.mT for s, r in zip(samples, random_rotations(3, seed=2), strict=True)]
    scores, nearest = sim.novelty(samples, chains[:40], candidates=10)
    assert nearest.tolist() == [2, 17, 33]
    assert (scores > 0.75).all() and (scores < 1).all()
    without, _ = sim.novelty(samples, [c for i, c in enumerate(chains[:40]) if i not in (2, 17, 33)], candidates=10)
    assert (without < scores - 0.1).all()


def test_bad_arguments_are_one_clear_error():
    with pytest.raises(ValueError, match="novelty needs samples and references, got 0 and 1"):
        sim.novelty([], [torch.zeros(5, 3)])
    x, mask = torch.zeros(1, 5, 3), torch.ones(1, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="effort must be 1 or 2, got 3"):
        sim.tm_align(x, x, mask, mask, effort=3)


@pytest.mark.parametrize("n, m", [(1, 1), (3, 40), (5, 6), (2, 130)])
def test_the_shortest_chains_give_finite_scores_within_bounds(n, m):
    x, y = (walk(k, seed=k) for k in (n, m))
    (xs, mask_x), (ys, mask_y) = batch_of([x]), batch_of([y])
    result = sim.tm_align(xs, ys, mask_x, mask_y)
    assert 0 <= result.score_x.item() <= 1.0001 and 0 <= result.score_y.item() <= 1.0001


@needs_shared_data
def test_mean_difference_to_tm_align_is_below_003(chains):
    tmtools = pytest.importorskip("tmtools")
    g = np.random.default_rng(1)
    rows, columns = (torch.tensor(g.integers(0, len(chains), 30)) for _ in range(2))
    score_x, score_y = sim._score_pairs(chains, chains, rows, columns, 2)
    quick, _ = sim._score_pairs(chains, chains, rows, columns, 1)
    expected = []
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        x, y = chains[i].double().numpy(), chains[j].double().numpy()
        result = tmtools.tm_align(x, y, "A" * len(x), "A" * len(y))
        expected.append((result.tm_norm_chain1, result.tm_norm_chain2))
    truth = torch.tensor(expected)
    assert (score_x - truth[:, 0]).abs().mean() < 0.03 and (score_y - truth[:, 1]).abs().mean() < 0.03
    assert (score_x - truth[:, 0]).abs().max() < 0.15
    assert (quick - truth[:, 0]).abs().mean() < 0.04


def test_scores_of_chains_made_here_are_those_of_tm_align():
    tmtools = pytest.importorskip("tmtools")
    g = np.random.default_rng(3)
    chains = []
    for length in (40, 55, 70, 48):
        kinds = [HELIX, STRAND, (-60.0, 140.0), (60.0, 45.0)]
        torsions = [t for _ in range(12) for t in [kinds[g.integers(4)]] * int(g.integers(3, 12))][:length]
        chains.append(torch.tensor(peptide(torsions)[:, 1]).float())
    chains.append(chains[2][:60] + 0.5 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0)))  # a close pair
    rows, columns = (torch.tensor(part) for part in zip(*itertools.combinations(range(5), 2), strict=True))
    score_x, score_y = sim._score_pairs(chains, chains, rows, columns, 2)
    truth = []
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        x, y = chains[i].double().numpy(), chains[j].double().numpy()
        result = tmtools.tm_align(x, y, "A" * len(x), "A" * len(y))
        truth.append((result.tm_norm_chain1, result.tm_norm_chain2))
    errors = (torch.stack([score_x, score_y], 1) - torch.tensor(truth)).abs()
    close = int(((rows == 2) & (columns == 4)).nonzero())
    assert errors[close].max() < 0.02 and score_x[close] > 0.75
    assert errors.mean() < 0.04 and errors.max() < 0.15  # the search is TM-align's first step, not all of them
