"""Metrics against plain Python and scipy."""

import math
from collections import Counter

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import torch

from manifoldflow.tasks.dna.alphabet import decode, encode
from manifoldflow.tasks.dna.evaluation import peak_of_sites
from manifoldflow.tasks.dna.fitting import Classifier
from manifoldflow.tasks.dna.metrics import (
    correlation,
    diversity,
    edit_distance,
    frechet_distance,
    gc_content,
    jensen_shannon,
    kmer_spectrum,
    nearest_distance,
    nearest_edit_distance,
)
from manifoldflow.tasks.dna.motifs import Motif
from manifoldflow.tasks.dna.sequences import SequenceSet


def random_sequences(count, length, seed=0):
    return torch.randint(4, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 3, 6])
def test_spectra_are_counts_of_words(k):
    sequences = ["ACGTACGTTT", "GGGTACAC", "ACACACACAC"]
    tokens, mask, _ = encode(sequences)
    words = Counter(s[i : i + k] for s in sequences for i in range(len(s) - k + 1))
    spectrum = kmer_spectrum(tokens, k, mask=mask)
    for word, count in words.items():
        number = sum("ACGT".index(c) * 4 ** (k - 1 - i) for i, c in enumerate(word))
        assert abs(float(spectrum[number]) - count / words.total()) < 1e-12
    assert abs(float(spectrum.sum()) - 1) < 1e-12


def test_distances_of_spectra_are_scipys():
    p, q = (kmer_spectrum(random_sequences(50, 30, s), 3) for s in (0, 1))
    assert abs(jensen_shannon(p, q) - scipy.spatial.distance.jensenshannon(p, q) ** 2) < 1e-10
    assert abs(correlation(p, q) - np.corrcoef(p, q)[0, 1]) < 1e-10
    assert jensen_shannon(p, p) == 0
    assert abs(jensen_shannon(torch.tensor([1.0, 0]), torch.tensor([0, 1.0])) - math.log(2)) < 1e-6


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def test_edit_distances_are_those_of_the_table():
    a, b = random_sequences(30, 14, 0), random_sequences(30, 11, 1)
    b[:5] = a[:5, 2:13]
    truth = [levenshtein(x, y) for x, y in zip(decode(a), decode(b), strict=True)]
    assert edit_distance(a, b).tolist() == truth


def test_nearest_reference():
    a, b = random_sequences(40, 20, 0), random_sequences(300, 20, 1)
    b[7] = a[3]
    distance, row = nearest_distance(a, b, cells=2000)
    truth = (a[:, None] != b[None]).sum(-1)
    assert (distance == truth.min(1).values).all() and (truth.gather(1, row[:, None])[:, 0] == distance).all()
    assert distance[3] == 0


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 130])
def test_the_nearest_edit_distance_is_that_of_the_table(length):
    a, b = random_sequences(4, length, 0), random_sequences(9, length + 3, 1)
    b[3, : length - length // 3] = a[
        0, length // 3 :
    ]  # a long shift, which costs many letters in place and few as edits
    lengths, known = torch.tensor([length, max(1, length - 5), 1, length]), torch.arange(3, 12).clamp_max(length + 3)
    mask = torch.arange(length) < lengths[:, None]
    known_mask = torch.arange(length + 3) < known.flip(0)[:, None]
    truth = torch.tensor([[levenshtein(x, y) for y in decode(b, known_mask)] for x in decode(a, mask)])
    distance, row = nearest_edit_distance(a, b, mask=mask, reference_mask=known_mask, cells=20)
    assert distance.tolist() == truth.amin(1).tolist()
    assert truth.gather(1, row[:, None])[:, 0].tolist() == distance.tolist()
    full = torch.tensor([[levenshtein(x, y) for y in decode(b)] for x in decode(a)])
    assert nearest_edit_distance(a, b)[0].tolist() == full.amin(1).tolist()


def test_gc_and_diversity():
    tokens, mask, _ = encode(["GGCC", "AT", "GA"])
    assert gc_content(tokens, mask).tolist() == [1.0, 0.0, 0.5]
    assert diversity(torch.zeros(5, 9, dtype=torch.int64)) == 0
    two = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]])
    assert diversity(two) == 0.75  # a sequence is never compared with itself
    assert abs(diversity(random_sequences(500, 50), generator=torch.Generator().manual_seed(0)) - 0.75) < 0.01


def test_frechet_distance_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    b = (
        torch.randn(200, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
        + 1
    )
    s, t = np.cov(a.T), np.cov(b.T)
    truth = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert abs(frechet_distance(a, b) - truth) < 1e-8 * truth
    assert frechet_distance(a, a) < 1e-9
    with pytest.warns(UserWarning, match="5 rows of 6 features"):
        frechet_distance(a[:5], b)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: kmer_spectrum(random_sequences(2, 5), 6), "between 1 and the length"),
        (lambda: diversity(random_sequences(1, 5)), "at least two"),
        (lambda: nearest_distance(random_sequences(2, 5), random_sequences(2, 6)), "place by place"),
        (lambda: nearest_edit_distance(random_sequences(2, 5), random_sequences(0, 5)), "no reference"),
        (lambda: frechet_distance(torch.randn(9, 3), torch.randn(9, 4)), "one D"),
        (lambda: frechet_distance(torch.randn(1, 3), torch.randn(5, 3)), "at least two rows"),
        (lambda: frechet_distance(torch.full((4, 3), torch.nan), torch.randn(5, 3)), "NaN"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_classifier_does_not_see_padding():
    torch.manual_seed(0)
    net = Classifier(2, width=8)
    tokens = random_sequences(3, 30, 0)
    padded = torch.cat([tokens, random_sequences(3, 17, 1)], 1)
    mask = (torch.arange(47) < 30).expand(3, 47)
    torch.testing.assert_close(net(padded, mask), net(tokens))
    assert (net(padded) - net(tokens)).abs().max() > 1e-4


def test_the_commonest_place_of_sites_is_found():
    tokens = random_sequences(400, 60, 0)
    box = Motif(
        "box", "own", ((0, 0, 0, 10), (10, 0, 0, 0), (0, 0, 0, 10), (10, 0, 0, 0), (10, 0, 0, 0), (10, 0, 0, 0))
    )
    tokens[:100, 23:29] = torch.tensor([3, 0, 3, 0, 0, 0])
    data = SequenceSet([str(i) for i in range(400)], tokens, torch.ones_like(tokens, dtype=torch.bool), None, (), 0)
    with pytest.raises(ValueError, match=r"own box is too short for sites of p_value 0.0001"):
        peak_of_sites(data, box)
    place, share = peak_of_sites(data, box, 1e-3, both_strands=False)
    assert place == 23 and 0.25 <= share < 0.28
