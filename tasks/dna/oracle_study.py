"""Can a score steer samples to strong motifs and leave the rest as it is? With a gradient, and without one.

    python -m manifoldflow.tasks.dna.oracle_study --checkpoint dna_ctcf_pu1 --out oracle.json

Unconditional samples of a flow are steered to a motif by its score: by :class:`manifoldflow.guidance.Oracle` through the expected
score, and by :class:`manifoldflow.guidance.Particles` through the best score of a sequence, of which no gradient is taken. The
mark is the 90th percentile of the best scores of real test peaks; words of three letters tell what else has changed.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.files import write_json
from manifoldflow.guidance import Oracle, Particles
from manifoldflow.tasks.common.files import find_shared
from manifoldflow.tasks.dna.flow import DEFAULT_CHECKPOINT, load_flow, sample_tokens, sampler
from manifoldflow.tasks.dna.metrics import diversity, jensen_shannon, kmer_spectrum
from manifoldflow.tasks.dna.motifs import Motif, best_hits, find_motif, read_motifs, score_all
from manifoldflow.tasks.dna.sets import load_set
from manifoldflow.tasks.dna.splits import split

SOFTNESS = 1.0
"""Bits within which places compete for the gradient."""


def soft_best(motif: Motif, softness: float = SOFTNESS) -> Callable[[Tensor], Tensor]:
    r"""The score :math:`\tau \log \sum_i e^{s_i / \tau}` of probabilities ``(B, L, 4)``, bits: s_i expected of a site at place i.

    Both strands; close to that of the best site.
    """
    strands = [motif, motif.reverse_complement()]

    def score(p: Tensor) -> Tensor:
        return softness * (score_all(p, strands) / softness).flatten(1).logsumexp(-1)

    return score


def hard_best(motif: Motif) -> Callable[[Tensor], Tensor]:
    """The score in bits of the best site of tokens ``(B, L)``, on either strand."""
    return lambda tokens: best_hits(tokens, [motif]).score[:, 0]


def measure(tokens: Tensor, motif: Motif, mark: float, spectra: dict[str, Tensor]) -> dict[str, float]:
    """What the table shows of some samples."""
    best = best_hits(tokens, [motif]).score[:, 0]
    words = kmer_spectrum(tokens, 3)
    found = {"mean score": float(best.mean()), "share above the mark": float((best >= mark).float().mean())}
    found |= {f"3-mers to {name}": jensen_shannon(words, law) for name, law in spectra.items()}
    return found | {"diversity": diversity(tokens, generator=torch.Generator().manual_seed(0))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="a name, a run folder or a model file")
    parser.add_argument("--data", default="ctcf_pu1", help="the set that it was trained on")
    parser.add_argument("--motif", default="MA0139.1")
    parser.add_argument("--motifs", default="jaspar2016_vertebrates.pfm", help="a file, or the name of a shared one")
    parser.add_argument("--label", default="ctcf", help="class whose real peaks give the mark")
    parser.add_argument("--num", type=int, default=1000, help="samples")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0], help="weights of the gradient")
    parser.add_argument("--particle_scales", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--particle_num", type=int, default=200, help="samples by particles")
    parser.add_argument("--count", type=int, default=32, help="particles for each")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args(arguments)
    flow, config = load_flow(a.checkpoint)
    motif = find_motif(read_motifs(a.motifs if Path(a.motifs).exists() else find_shared(f"dna/{a.motifs}")), a.motif)
    real = load_set(a.data)
    parts = split(real)
    train, test = real.rows(parts.train), real.rows(parts.test)
    assert test.labels is not None
    peaks = test.tokens[test.labels == real.classes.index(a.label)]
    scores = best_hits(peaks, [motif]).score[:, 0]
    mark = float(scores.quantile(0.9))
    strong = train.tokens[best_hits(train.tokens, [motif]).score[:, 0] >= mark]
    spectra = {"all real": kmer_spectrum(train.tokens, 3), "real above the mark": kmer_spectrum(strong, 3)}
    rows: dict[str, Any] = {"real peaks": {"mark": mark} | measure(peaks, motif, mark, spectra)}
    rows["real peaks above the mark"] = measure(strong, motif, mark, spectra)

    def run(name: str, steered: mf.Flow, num: int) -> None:
        tokens = sample_tokens(
            steered,
            num,
            config.length,
            a.steps,
            part=64 if isinstance(steered, Particles) else 500,
            method=sampler(config),
            generator=torch.Generator().manual_seed(0),
        )
        rows[name] = measure(tokens, motif, mark, spectra)
        print(name, json.dumps(rows[name]), flush=True)
        if a.out:
            write_json(a.out, rows)

    for name, row in rows.items():
        print(name, json.dumps(row), flush=True)
    run("no guidance", flow, a.num)
    for scale in a.scales:
        run(f"gradient, {scale}", Oracle(flow, soft_best(motif), scale), a.num)
    for scale in a.particle_scales:
        run(f"{a.count} particles, {scale}", Particles(flow, hard_best(motif), scale, count=a.count), a.particle_num)


if __name__ == "__main__":
    main()
