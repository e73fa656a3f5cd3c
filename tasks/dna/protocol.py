"""The table of this folder's README: five representations and baselines, trained, sampled and judged alike.

    python -m manifoldflow.tasks.dna.protocol --data ctcf_pu1 --motifs jaspar2016_vertebrates.pfm --motif MA0139.1,MA0080.4
    python -m manifoldflow.tasks.dna.protocol ... --models markov markov_motif masking --checkpoint dna_ctcf_pu1
    python -m manifoldflow.tasks.dna.protocol --data ctcf_pu1 --show

The trivial baselines, ``markov`` and ``markov_motif``, are a Markov chain of every class, and the same with one site of the
class's motif written in. They belong in every table: see :mod:`manifoldflow.tasks.dna.markov`.

Every finished model is kept in ``OUT/table_DATA.json``, so a run that was stopped goes on with what is missing; training goes
on in its own folder. Samples are drawn twice: with the classes of the training part as they come, without guidance, which words
and diversity are measured on; and as many of each class with guidance, which motifs and the judge look at.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.guidance import ClassifierFree
from manifoldflow.tasks.common.files import find_shared
from manifoldflow.tasks.common.splits import Split
from manifoldflow.tasks.common.tables import Kept, markdown, number, share_within
from manifoldflow.tasks.dna.evaluation import cell, compare_sets
from manifoldflow.tasks.dna.fitting import Classifier, fit_classifier, fit_flow
from manifoldflow.tasks.dna.flow import REPRESENTATIONS, DnaConfig, Representation, load_flow, sample_tokens, sampler
from manifoldflow.tasks.dna.motifs import Motif, find_motif, read_motifs
from manifoldflow.tasks.dna.rules import LIKELIHOOD, RULES, as_set, score_rule, some_labels, write_set
from manifoldflow.tasks.dna.sequences import SequenceSet
from manifoldflow.tasks.dna.sets import load_set
from manifoldflow.tasks.dna.splits import split
from manifoldflow.training import TrainConfig

MODELS = (*RULES, *REPRESENTATIONS)
DEFAULT = [name for name in MODELS if name != "linear"]
PARTS = ("plain", "guided")
BOTH_STRANDS = ("ctcf_pu1", "enhancers")
"""Sets whose sequences have no direction."""


def training(steps: int) -> TrainConfig:
    """The recipe of all models."""
    return TrainConfig(
        max_steps=steps,
        schedule="cosine",
        warmup_steps=100,
        learning_rate=2e-3,
        ema=0.999,
        precision="bf16-mixed",
        compile=True,
        validate_every=max(1, steps // 8),
        checkpoint_every=500,
        progress=False,
    )


def trained(data: str, real: SequenceSet, parts: Split, kind: Representation, steps: int, out: Path) -> Path:
    """The folder of a trained model; its training is done, or gone on with, if need be."""
    folder = out / f"{data}_{kind}"
    config = DnaConfig(representation=kind, length=real.tokens.shape[1], classes=",".join(real.classes))
    fit_flow(
        real.rows(parts.train),
        real.rows(parts.val),
        config,
        training(steps),
        folder,
        both_strands=data in BOTH_STRANDS,
        resume=True,
        facts={"source": {"data": data, "unknown": "drop", "species": None, "split_seed": 0}},
    )
    return folder


def draw(flow: mf.Flow, config: DnaConfig, labels: Tensor, steps: int, guidance: float, seed: int) -> SequenceSet:
    """Samples of the given classes as a set."""
    steered = flow if guidance == 1 else ClassifierFree(flow, guidance)
    tokens = sample_tokens(
        steered,
        len(labels),
        config.length,
        steps,
        cond=labels,
        method=sampler(config),
        generator=torch.Generator().manual_seed(seed),
    )
    return as_set(tokens, labels, config.class_names)


def evaluations(config: DnaConfig, steps: int) -> int:
    """Network evaluations of one sequence without guidance: the last step of an integrator ends on the first prediction."""
    if config.representation == "autoregressive":
        return config.length
    return steps if config.representation in ("masking", "uniform") else 2 * steps


def score_model(
    folder: Path | str,
    real: SequenceSet,
    parts: Split,
    motifs: list[Motif],
    judge: Classifier,
    *,
    count: int,
    steps: int,
    guidance: float,
    collection: Sequence[Motif] = (),
    classifier_steps: int = 1000,
    samples: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything about one model: ``{"plain": measures, "guided": measures, "CPU seconds per 1,000": ..., ...}``.

    Args:
        folder: of the run, or a checkpoint.
        real, parts: the data.
        motifs: whose sites to look at.
        judge: of the classes.
        count: samples without guidance; half as many with it.
        steps: network evaluations of a sample.
        guidance: weight of the class in the guided ones.
        collection: motifs to compare the rates of all together.
        classifier_steps: of the classifier that tells samples from data.
        samples: folder to write them to.
        seed: of the samples.
    """
    flow, config = load_flow(folder)
    train = real.rows(parts.train)
    assert train.labels is not None
    # Two evaluations a step for the continuous ones: half the steps for the same cost.
    own_steps = steps if config.representation in ("masking", "uniform", "autoregressive") else steps // 2
    labels = some_labels(train, count, seed)
    began = time.process_time()  # of one thread: other work on the machine does not count
    plain = draw(flow, config, labels, own_steps, 1.0, seed)
    seconds = time.process_time() - began
    each = torch.arange(len(real.classes)).repeat_interleave(count // (2 * len(real.classes)))
    guided = draw(flow, config, each, own_steps, guidance, seed + 1)
    if samples is not None:
        for part, made in (("plain", plain), ("guided", guided)):
            write_set(samples / f"{config.representation}_{part}.fasta", made)
    options: dict[str, Any] = {"judge": judge, "collection": collection, "classifier_steps": classifier_steps}
    row: dict[str, Any] = {
        "plain": compare_sets(plain, real, parts, motifs, apart=True, **options),
        "guided": compare_sets(guided, real, parts, motifs, **options),
        "CPU seconds per 1,000": 1000 * seconds / len(labels),
        "network evaluations": evaluations(config, own_steps),
        "samples": [len(plain), len(guided)],
        "guidance": guidance,
        "parameters": sum(p.numel() for p in flow.parameters()),
    }
    if isinstance(flow.spaces, mf.Tokens):
        test = real.rows(parts.test[:512])
        bound = flow.elbo(test.tokens, samples=32, cond=test.labels, generator=torch.Generator().manual_seed(seed))
        row[LIKELIHOOD] = float(-bound.mean()) / config.length
    return row


def summary(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a column for every model, and one for real test sequences."""
    names = list(rows)
    measures = {
        (part, name): row[part][name] for row in rows.values() for part in PARTS if part in row for name in row[part]
    }
    lines = []
    for (part, name), any_row in measures.items():
        found = [rows[n].get(part, {}).get(name) for n in names]
        cells = [cell(row, "samples") if row else "" for row in found]
        lines.append([f"{part}: {name}", *cells, cell(any_row, "real")])
    for name in (LIKELIHOOD, "CPU seconds per 1,000", "network evaluations", "guidance", "parameters", "samples"):
        lines.append([name, *(number(rows[n].get(name, "")) for n in names), ""])
    return markdown(["", *names, "real"], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ctcf_pu1", help="a set with classes: a shared one, planted, or a file")
    parser.add_argument("--out", type=Path, default=Path("runs/dna"), help="folder of runs and tables")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=DEFAULT)
    parser.add_argument("--checkpoint", help="take this flow for its representation instead of training one")
    parser.add_argument("--train_steps", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=100, help="network evaluations of a sample")
    parser.add_argument("--num", type=int, default=4000, help="samples without guidance; half as many with it")
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument(
        "--judge_steps", type=int, default=2000, help="of the judge of classes; half as many to tell samples"
    )
    parser.add_argument("--motifs", help="file of motifs, or the name of a shared one")
    parser.add_argument("--motif", default="", help="names of motifs to count, with commas")
    parser.add_argument("--show", action="store_true", help="print the table and stop")
    a = parser.parse_args(arguments)
    title = Path(a.data).name.split(".")[0]
    kept = Kept(a.out / f"table_{title}.json")
    if a.show:
        print(summary(kept.rows()) if kept.rows() else f"{kept.file} holds no model yet")
        return
    real = load_set(a.data)
    if real.labels is None:
        raise ValueError(f"{a.data} has no classes, which the table is of")
    parts = split(real)
    known = read_motifs(a.motifs if Path(a.motifs).exists() else find_shared(f"dna/{a.motifs}")) if a.motifs else []
    chosen = [find_motif(known, name) for name in a.motif.split(",") if name]
    judge, right = fit_classifier(real.rows(parts.train), real.rows(parts.val), steps=a.judge_steps)
    print(f"the judge calls {share_within(right, len(parts.val))} of validation sequences right", flush=True)
    options: dict[str, Any] = {"count": a.num, "collection": known, "classifier_steps": a.judge_steps // 2}
    options["samples"] = a.out / f"samples_{title}"
    for kind in a.models:
        if kind in kept:
            continue
        if kind in RULES:
            both = title in BOTH_STRANDS
            row = score_rule(kind, real, parts, chosen, judge, both_strands=both, **options)
        else:
            ready = a.checkpoint if a.checkpoint and load_flow(a.checkpoint)[1].representation == kind else None
            folder = ready or trained(title, real, parts, kind, a.train_steps, a.out)
            row = score_model(folder, real, parts, chosen, judge, steps=a.steps, guidance=a.guidance, **options)
        kept.add(kind, row)
        print(kind, json.dumps(row), flush=True)
    print(summary(kept.rows()))


if __name__ == "__main__":
    main()
