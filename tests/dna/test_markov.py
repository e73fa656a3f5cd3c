"""The trivial baseline is a law: it sums to one, draws what it says, and is fitted to what it drew."""

import pytest
import torch

from manifoldflow.tasks.dna.alphabet import encode, reverse_complement
from manifoldflow.tasks.dna.markov import MarkovChain, PlantedChain
from manifoldflow.tasks.dna.matrices import Motif

EVERY = torch.cartesian_prod(*[torch.arange(4)] * 5)
BOX = Motif("box", "BOX", ((9.0, 1.0, 0.0, 0.0), (0.0, 0.0, 2.0, 8.0), (1.0, 1.0, 7.0, 1.0)))


def some_chain(order):
    tokens = torch.randint(4, (40, 12), generator=torch.Generator().manual_seed(0))
    tokens[:, 1::3] = tokens[:, ::3]  # something to learn
    return MarkovChain.fit(tokens, order, strength=2.0)


@pytest.mark.parametrize("order", [0, 1, 2, 7])
def test_probabilities_sum_to_one(order):
    chain = some_chain(order)
    assert abs(float(chain.log_prob(EVERY).exp().sum()) - 1) < 1e-12
    for share in (0.0, 0.3, 1.0):
        assert abs(float(PlantedChain(chain, BOX, share).log_prob(EVERY).exp().sum()) - 1) < 1e-12


@pytest.mark.parametrize("share", [None, 0.4, 1.0])
def test_what_is_drawn_has_the_law_that_is_said(share):
    chain = some_chain(2)
    law = chain if share is None else PlantedChain(chain, BOX, share)
    tokens = law.sample(200_000, 5, generator=torch.Generator().manual_seed(1))
    shares = torch.bincount((tokens * 4 ** torch.arange(4, -1, -1)).sum(-1), minlength=4**5) / len(tokens)
    expected = law.log_prob(EVERY).exp()
    distance = (shares - expected).square().div(expected).sum() * len(tokens)  # chi squared of 1023
    assert 1023 - 5 * 2046**0.5 < float(distance) < 1023 + 5 * 2046**0.5


def test_a_chain_counts_letters_after_their_contexts():
    tokens, mask, _ = encode(["AACAAG", "CT"])  # after A: A, C, A, G; after C: A, T; padding is stored as A
    chain = MarkovChain.fit(tokens, 1, mask=mask, strength=1e-9)
    expected = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.5, 0.0, 0.0, 0.5]], dtype=torch.float64)
    assert torch.allclose(chain.tables[1][:2].exp(), expected, atol=1e-6)
    assert torch.allclose(
        chain.tables[0].exp(), torch.tensor([[4.0, 2.0, 1.0, 1.0]], dtype=torch.float64) / 8, atol=1e-6
    )
    # contexts that were never seen fall back on the shorter ones
    assert torch.allclose(chain.tables[1][3].exp(), chain.tables[0][0].exp(), atol=1e-6)
    both = MarkovChain.fit(tokens, 1, mask=mask, both_strands=True)
    assert torch.allclose(both.tables[0], both.tables[0].flip(1))


def test_the_share_of_planted_sites_is_found_again():
    chain, motif = (
        some_chain(1),
        Motif("m", "M", tuple((20.0, 0.0, 0.0, 0.0) if i % 2 else (0.0, 0.0, 19.0, 1.0) for i in range(8))),
    )
    for share in (0.2, 0.7):
        tokens = PlantedChain(chain, motif, share).sample(3000, 40, generator=torch.Generator().manual_seed(2))
        found = PlantedChain.fit(chain, motif, tokens)
        assert abs(found.share - share) < 0.03
        assert float(found.log_prob(tokens).mean()) > float(chain.log_prob(tokens).mean()) + 0.2
        turned = reverse_complement(tokens)  # the chain learns a part of the sites itself
        assert abs(PlantedChain.fit(MarkovChain.fit(turned, 1), motif, turned).share - share) < 0.06


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="order must be at least 0"):
        MarkovChain.fit(EVERY, -1)
    with pytest.raises(ValueError, match="no letters"):
        MarkovChain.fit(EVERY, 1, mask=torch.zeros_like(EVERY, dtype=torch.bool))
    with pytest.raises(ValueError, match="box has 3 letters, more than the 2"):
        PlantedChain(some_chain(1), BOX).sample(1, 2)
    with pytest.raises(ValueError, match="share must lie"):
        PlantedChain(some_chain(1), BOX, 1.5)
