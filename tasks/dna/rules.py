"""The trivial baselines of the table: what rules of a page score by the measures that models are judged by."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifoldflow.tasks.common.splits import Split
from manifoldflow.tasks.dna.evaluation import P_VALUE, compare_sets
from manifoldflow.tasks.dna.fitting import Classifier
from manifoldflow.tasks.dna.markov import ORDER, MarkovChain, PlantedChain
from manifoldflow.tasks.dna.motifs import Motif, hit_rate, site_score
from manifoldflow.tasks.dna.reading import write_fasta
from manifoldflow.tasks.dna.sequences import SequenceSet

RULES = ("markov", "markov_motif")

LIKELIHOOD = "held-out NLL (nats per letter)"
"""Exact for the rules, a bound from above for flows."""


def fit_rules(
    kind: str, train: SequenceSet, motifs: Sequence[Motif], *, both_strands: bool, order: int = ORDER
) -> list[MarkovChain | PlantedChain]:
    """A trivial law for every class: a Markov chain, with one site of that motif written in which the class has most often.

    Raises:
        ValueError: no motifs to write in.
    """
    assert train.labels is not None
    if kind == "markov_motif" and not motifs:
        raise ValueError("markov_motif writes a motif in: name some by --motifs and --motif")
    laws: list[MarkovChain | PlantedChain] = []
    for number in range(len(train.classes)):
        tokens = train.tokens[train.labels == number]
        chain = MarkovChain.fit(tokens, order, both_strands=both_strands)
        if kind == "markov":
            laws.append(chain)
            continue
        rates = [hit_rate(tokens, motif, site_score(motif, P_VALUE)) for motif in motifs]
        laws.append(PlantedChain(chain, motifs[max(range(len(motifs)), key=rates.__getitem__)]))
    return laws


def score_rule(
    kind: str,
    real: SequenceSet,
    parts: Split,
    motifs: list[Motif],
    judge: Classifier,
    *,
    count: int,
    both_strands: bool,
    collection: Sequence[Motif] = (),
    classifier_steps: int = 1000,
    samples: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything about a trivial law, as for a model; there is nothing to guide."""
    train, test = real.rows(parts.train), real.rows(parts.test)
    assert train.labels is not None and test.labels is not None
    laws = fit_rules(kind, train, motifs, both_strands=both_strands)
    labels = some_labels(train, count, seed)
    tokens, scores = torch.zeros(len(labels), real.tokens.shape[1], dtype=torch.int64), torch.zeros(len(test))
    generator = torch.Generator().manual_seed(seed)
    began = time.process_time()
    for number, law in enumerate(laws):
        here = labels == number
        tokens[here] = law.sample(int(here.sum()), tokens.shape[1], generator=generator)
    seconds = time.process_time() - began
    for number, law in enumerate(laws):
        here = test.labels == number
        scores[here] = law.log_prob(test.tokens[here]).float()
    made = as_set(tokens, labels, real.classes)
    if samples is not None:
        write_set(samples / f"{kind}_plain.fasta", made)
    return {
        "plain": compare_sets(
            made, real, parts, motifs, judge=judge, collection=collection, apart=True, classifier_steps=classifier_steps
        ),
        LIKELIHOOD: float(-scores.mean()) / real.tokens.shape[1],
        "CPU seconds per 1,000": 1000 * seconds / len(labels),
        "samples": [len(made), 0],
    }


def write_set(path: Path, made: SequenceSet) -> None:
    """Samples as FASTA, to be looked at or measured again."""
    assert made.labels is not None
    names = [f"s{i} label={made.classes[k]}" for i, k in enumerate(made.labels.tolist())]
    write_fasta(path, made.tokens, names=names)


def some_labels(train: SequenceSet, count: int, seed: int) -> Tensor:
    """Classes of samples, as they come in the training part."""
    assert train.labels is not None
    return train.labels[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]]


def as_set(tokens: Tensor, labels: Tensor, classes: tuple[str, ...]) -> SequenceSet:
    """Tokens ``(B, L)`` of these classes as a set."""
    names = [str(i) for i in range(len(tokens))]
    return SequenceSet(names, tokens, torch.ones_like(tokens, dtype=torch.bool), labels, classes, 0)
