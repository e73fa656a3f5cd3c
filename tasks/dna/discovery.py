r"""Motifs that a set of sequences has and another lacks, found without knowing any: expectation maximisation.

The model of a sequence (ZOOPS, Bailey & Elkan 1994): with probability :math:`\lambda` it holds one site, at any place of either
strand alike; everything else is background b, which is that of the sequence itself (a common one would take the rich and
the poor for motifs). The posterior of a site at place s is

.. math:: z_s = \frac{\frac{\lambda}{2 M} e^{S_s}}{1 - \lambda + \frac{\lambda}{2 M} \sum_r e^{S_r}}, \qquad
          S_s = \sum_j \log \frac{m_j(x_{s + j})}{b(x_{s + j})},

and the motif's counts are the letters of all places, each weighted by z. It starts from words that the control set lacks.

``python -m manifoldflow.tasks.dna.discovery`` fits the motifs of the embedded flows to their own designs and writes
``data/dna/own_motifs.json``: the tracks that the server shows when it is given no motif file. No collection of motifs goes in.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldflow.checkpoint import data_path
from manifoldflow.files import write_json
from manifoldflow.tasks.dna.alphabet import decode, encode
from manifoldflow.tasks.dna.motifs import Motif

WORD, STARTS = 6, 4
"""Letters of a word, and words to start from; the motif that gains most is taken."""

SMOOTH = 20.0
"""Letters of the common background in that of each sequence."""

FILE = "dna/own_motifs.json"


class Found(NamedTuple):
    """A motif that was found.

    Attributes:
        motif: with the counts of about as many sites as there are sequences with one.
        share: of the sequences that hold a site, the model's lambda.
    """

    motif: Motif
    share: float


def discover(
    tokens: Tensor,
    control: Tensor,
    *,
    name: str,
    identifier: str,
    width: int = 20,
    rounds: int = 60,
    least: float = 0.3,
) -> Found:
    """The motif that tells ``tokens`` from ``control`` best, on either strand.

    Args:
        tokens: sequences ``(B, L)`` of which many hold a site.
        control: sequences without it, of the same background.
        name, identifier: of the motif.
        width: places of the motif before those at its ends are cut off that say little.
        rounds: of expectation maximisation.
        least: bits of information from which a place at the end stays.

    Raises:
        ValueError: sequences shorter than the motif.
    """
    if tokens.shape[1] < width + 2 or len(tokens) < 2 or len(control) < 2:
        raise ValueError(
            f"a motif of {width} places needs two sequences and a control with {width + 2} letters at least"
        )
    both = torch.nn.functional.one_hot(
        torch.cat([tokens, 3 - tokens.flip(1)], 1), 4
    ).double()  # A C G T: 3 - x pairs with x
    length = tokens.shape[1]
    windows = torch.cat(
        [both[:, :length].unfold(1, width, 1), both[:, length:].unfold(1, width, 1)], 1
    )  # (B, 2 M, 4, W)
    background = both.mean((0, 1))
    own = (both.sum(1) + SMOOTH * background) / (2 * length + SMOOTH)
    base = torch.einsum("bmkw,bk->bm", windows, own.log())
    best, most = Found(Motif(name, identifier, ((1.0, 1.0, 1.0, 1.0),)), 0.0), -torch.inf
    for start in _enriched(tokens, control):
        counts, share, gain = _maximise(windows, base, background, start, rounds)
        if gain > most:
            table = ((counts + background[:, None]) / (counts.sum(0) + 1)).T
            kept = (counts[:, at].tolist() for at in _trimmed(table, background, least))
            rows = tuple(tuple(round(value, 1) for value in row) for row in kept)
            best, most = Found(Motif(name, identifier, rows), share), gain  # type: ignore[arg-type]
    return best


def _maximise(
    windows: Tensor, base: Tensor, background: Tensor, start: Tensor, rounds: int
) -> tuple[Tensor, float, float]:
    """Counts ``(4, W)``, the share of sequences with a site, and nats that the motif gains for a sequence, from a word."""
    width, places = windows.shape[-1], windows.shape[1]
    table = background.expand(width, 4).clone()
    first = (width - WORD) // 2
    table[first : first + WORD] = 0.1 + 0.6 * torch.nn.functional.one_hot(start, 4)
    share, gain = torch.tensor(0.5, dtype=torch.float64), torch.tensor(-torch.inf)
    counts, posterior = table.T, windows.new_zeros(windows.shape[:2])
    for _ in range(rounds):
        score = torch.einsum("bmkw,kw->bm", windows, table.log().T) - base
        chance = score.exp() * share / places
        whole = 1 - share + chance.sum(1, keepdim=True)
        posterior, gain = chance / whole, whole.log().mean()
        counts = torch.einsum("bm,bmkw->kw", posterior, windows)
        table = ((counts + background[:, None]) / (counts.sum(0) + 1)).T
        share = posterior.sum(1).mean().clamp(0.01, 0.99)
    forward, reverse = (float(part.sum()) for part in posterior.chunk(2, 1))
    if reverse > 1.5 * forward:  # sites that have a direction are shown in it
        counts = counts.flip(0, 1)
    return counts, float(share), float(gain)


def _enriched(tokens: Tensor, control: Tensor) -> list[Tensor]:
    """Words that more of the sequences hold, on either strand, than of the control: by the z-score of two shares."""
    here, there = _holding(tokens), _holding(control)
    share = (here * len(tokens) + there * len(control) + 1) / (len(tokens) + len(control) + 2)
    error = (share * (1 - share) * (1 / len(tokens) + 1 / len(control))).sqrt()
    found: list[Tensor] = []
    for number in ((here - there) / error).argsort(descending=True).tolist():
        word = torch.tensor([number // 4 ** (WORD - 1 - at) % 4 for at in range(WORD)])
        if not any(torch.equal(3 - word.flip(0), other) for other in found):  # which is the same word
            found.append(word)
        if len(found) == STARTS:
            break
    return found


def _holding(tokens: Tensor) -> Tensor:
    """Share of the sequences that hold each word, ``(4 ** WORD,)``."""
    weights = 4 ** torch.arange(WORD - 1, -1, -1)
    held = torch.zeros(len(tokens), 4**WORD, dtype=torch.bool)
    for strand in (tokens, 3 - tokens.flip(1)):
        held.scatter_(1, (strand.unfold(1, WORD, 1) * weights).sum(-1), True)
    return held.double().mean(0)


def _trimmed(table: Tensor, background: Tensor, least: float) -> range:
    """The places from the first to the last with at least so many bits."""
    bits = (table * (table / background).log2()).sum(1)
    good = (bits >= least).nonzero().squeeze(1)
    return range(int(good[0]), int(good[-1]) + 1) if len(good) else range(len(table))


WANTED = {
    "dna_ctcf_pu1": (("CTCF site", "ctcf", "pu1", 20), ("PU.1 site", "pu1", "ctcf", 20)),
    "dna_promoters": (("TATA box", "tata", "non_promoter", 14),),
}
"""For every embedded flow: a motif's name, the class that has it, one that lacks it, and the most places."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the motifs of the embedded flows to their designs, and write them."""
    from manifoldflow.tasks.dna.designer import SequenceDesigner

    parser = argparse.ArgumentParser(description="Fit the motifs of the embedded flows to their own designs.")
    parser.add_argument("--num", type=int, default=300, help="designs of each class")
    parser.add_argument("--steps", type=int, default=48, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=2.0, help="weight of the class")
    parser.add_argument("--out", default=str(data_path(FILE)), help="file to write")
    options = parser.parse_args(arguments)
    made: dict[str, list[dict[str, object]]] = {}
    for model, wanted in WANTED.items():
        designer = SequenceDesigner.load(model)
        drawn = {}
        for label in {label for _, *labels, _ in wanted for label in labels}:
            designs = designer.design(options.num, label=label, guidance=options.guidance, steps=options.steps, seed=0)
            drawn[label] = encode([design.sequence for design in designs])[0]
        made[model] = []
        for name, label, other, width in wanted:
            found = discover(drawn[label], drawn[other], name=name, identifier=name, width=width)
            consensus = decode(torch.tensor([row.index(max(row)) for row in found.motif.counts])[None])[0]
            print(f"{model}: {name} {consensus} in {found.share:.0%} of {options.num} designs of the class {label}")
            made[model].append({"name": name, "identifier": found.motif.identifier, "counts": found.motif.counts})
    print(f"wrote {write_json(options.out, made)}")


if __name__ == "__main__":
    main()
