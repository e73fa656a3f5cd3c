"""The generated set and its law."""

import itertools

import pytest
import torch

from manifoldflow.tasks.dna.motifs import Motif, find_motif, hit_rate, threshold
from manifoldflow.tasks.dna.planted import LAWS, Plant, PlantedLaw, load_planted, make_set
from manifoldflow.tasks.dna.sets import load_set


def small_law():
    one = Motif("one", "1", ((0.7, 0.1, 0.1, 0.1), (0.2, 0.3, 0.4, 0.1)))
    two = Motif("two", "2", ((0.0, 0.5, 0.5, 0.0),))
    return PlantedLaw(6, (0.4, 0.3, 0.2, 0.1), (Plant(one, 0, (1.0, 2.0)), Plant(two, 4, (1.0, 1.0))))


def test_the_law_is_normalised_and_draws_follow_it():
    law = small_law()
    every = torch.tensor(list(itertools.product(range(4), repeat=6)))
    p = law.log_prob(every).exp()
    assert abs(float(p.sum()) - 1) < 1e-10
    n = 200_000
    drawn = law.sample(n, generator=torch.Generator().manual_seed(0))
    number = (drawn * 4 ** torch.arange(5, -1, -1)).sum(-1)
    counts = torch.bincount(number, minlength=len(every)).double()
    seen = p * n > 10
    chi2 = float(((counts - n * p).square() / (n * p))[seen].sum())
    assert chi2 < int(seen.sum()) + 6 * (2 * int(seen.sum())) ** 0.5


def test_the_embedded_set_is_what_the_generator_makes():
    data = load_planted()
    tokens, labels = make_set()
    assert (data.tokens == tokens).all() and (data.labels == labels).all()
    assert load_set("planted").classes == ("plain", "tata")


def test_the_law_tells_the_classes_apart_and_so_do_their_motifs():
    data = load_planted()
    score = torch.stack([law.log_prob(data.tokens) for law in LAWS.values()], -1)
    assert (score.argmax(-1) == data.labels).float().mean() > 0.98
    box = find_motif([plant.motif for plant in LAWS["tata"].plants], "tata")
    rates = [hit_rate(data.tokens[data.labels == k], box, threshold(box, 1e-3), both_strands=False) for k in (0, 1)]
    assert rates[1] > 0.8 > 10 * rates[0]


def test_plants_that_overlap_are_refused():
    motif = Motif("a", "a", ((1.0, 0.0, 0.0, 0.0),) * 4)
    with pytest.raises(ValueError, match="overlaps"):
        PlantedLaw(20, (0.25,) * 4, (Plant(motif, 0, (1.0,) * 5), Plant(motif, 6)))
    with pytest.raises(ValueError, match="too late"):
        PlantedLaw(6, (0.25,) * 4, (Plant(motif, 3),))
