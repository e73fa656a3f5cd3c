"""The table of this folder's README: five representations and a baseline, trained, sampled and judged alike.

    python -m manifoldflow.tasks.dna.protocol --data ctcf_pu1 --motifs jaspar2016_vertebrates.pfm --motif MA0139.1,MA0080.4
    python -m manifoldflow.tasks.dna.protocol --data ctcf_pu1 --show

Every finished model is kept in ``OUT/table_DATA.json``, so a run that was stopped goes on with what is missing; training goes
on in its own folder. Samples are drawn twice: with the classes of the training part as they come, without guidance, which words
and diversity are measured on; and as many of each class with guidance, which motifs and the judge look at.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import manifoldflow as mf
from manifoldflow.files import write_json
from manifoldflow.guidance import ClassifierFree
from manifoldflow.tasks.common.files import find_shared
from manifoldflow.tasks.dna.evaluation import compare_sets
from manifoldflow.tasks.dna.fitting import Classifier, fit_classifier, fit_flow
from manifoldflow.tasks.dna.flow import REPRESENTATIONS, DnaConfig, Representation, load_flow, sample_tokens, sampler
from manifoldflow.tasks.dna.motifs import Motif, find_motif, read_motifs
from manifoldflow.tasks.dna.sequences import SequenceSet
from manifoldflow.tasks.dna.sets import load_set
from manifoldflow.tasks.dna.splits import Split, split
from manifoldflow.training import TrainConfig

DEFAULT = [name for name in REPRESENTATIONS if name != "linear"]


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
        both_strands=data == "ctcf_pu1",
        resume=True,
        facts={"source": {"data": data, "unknown": "drop", "species": None, "split_seed": 0}},
    )
    return folder


def draw(flow: mf.Flow, config: DnaConfig, labels: torch.Tensor, steps: int, guidance: float, seed: int) -> SequenceSet:
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
    names = [str(i) for i in range(len(tokens))]
    return SequenceSet(names, tokens, torch.ones_like(tokens, dtype=torch.bool), labels, config.class_names, 0)


def evaluations(config: DnaConfig, steps: int) -> int:
    """Network evaluations of one sequence without guidance: the last step of an integrator ends on the first prediction."""
    if config.representation == "autoregressive":
        return config.length
    return steps if config.representation in ("masking", "uniform") else 2 * steps


def score_model(
    folder: Path,
    real: SequenceSet,
    parts: Split,
    motifs: list[Motif],
    judge: Classifier,
    *,
    count: int,
    steps: int,
    guidance: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything about one model: ``{"plain": measures, "guided": measures, "CPU seconds per 1,000": ..., ...}``."""
    flow, config = load_flow(str(folder))
    train = real.rows(parts.train)
    assert train.labels is not None
    # Two evaluations a step for the continuous ones: half the steps for the same cost.
    own_steps = steps if config.representation in ("masking", "uniform", "autoregressive") else steps // 2
    labels = train.labels[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]]
    began = time.process_time()  # of one thread: other work on the machine does not count
    plain = draw(flow, config, labels, own_steps, 1.0, seed)
    seconds = time.process_time() - began
    each = torch.arange(len(real.classes)).repeat_interleave(count // (2 * len(real.classes)))
    guided = draw(flow, config, each, own_steps, guidance, seed + 1)
    row: dict[str, Any] = {
        "plain": compare_sets(plain, real, parts, motifs, judge=judge),
        "guided": compare_sets(guided, real, parts, motifs, judge=judge),
        "CPU seconds per 1,000": 1000 * seconds / len(labels),
        "network evaluations": evaluations(config, own_steps),
        "samples": [len(plain), len(guided)],
        "guidance": guidance,
        "parameters": sum(p.numel() for p in flow.parameters()),
    }
    if isinstance(flow.spaces, mf.Tokens):
        test = real.rows(parts.test[:512])
        bound = flow.elbo(test.tokens, samples=32, cond=test.labels, generator=torch.Generator().manual_seed(seed))
        row["bound (nats per letter)"] = float(-bound.mean()) / config.length
    torch.save({"plain": (plain.tokens, plain.labels), "guided": (guided.tokens, guided.labels)}, folder / "samples.pt")
    return row


def summary(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a column for every model, and one for real test sequences."""
    names = list(rows)
    lines = ["| | " + " | ".join(names) + " | real |", "|---" * (len(names) + 2) + "|"]
    measures = [(part, name) for part in ("plain", "guided") for name in rows[names[0]][part]]
    for part, name in measures:
        found = [rows[n][part][name] for n in names]
        cells = [f"{row['samples']:.3g}" for row in found] + [f"{found[0]['real']:.3g}"]
        lines.append(f"| {part}: {name} | " + " | ".join(cells) + " |")
    for name in ("bound (nats per letter)", "CPU seconds per 1,000", "network evaluations", "guidance", "parameters"):
        cells = [f"{rows[n][name]:.4g}" if name in rows[n] else "" for n in names]
        lines.append(f"| {name} | " + " | ".join(cells) + " | |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ctcf_pu1", help="a shared set with classes, or planted")
    parser.add_argument("--out", type=Path, default=Path("runs/dna"), help="folder of runs and tables")
    parser.add_argument("--models", nargs="+", choices=REPRESENTATIONS, default=DEFAULT)
    parser.add_argument("--train_steps", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=100, help="network evaluations of a sample")
    parser.add_argument("--num", type=int, default=4000, help="samples without guidance; half as many with it")
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--motifs", help="JASPAR, MEME or TRANSFAC file, or the name of a shared one")
    parser.add_argument("--motif", default="", help="names of motifs to count, with commas")
    parser.add_argument("--show", action="store_true", help="print the table and stop")
    a = parser.parse_args()
    file = a.out / f"table_{a.data}.json"
    rows: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if a.show:
        print(summary(rows) if rows else f"{file} holds no model yet")
        return
    real = load_set(a.data)
    parts = split(real)
    chosen = []
    if a.motifs:
        known = read_motifs(a.motifs if Path(a.motifs).exists() else find_shared(f"dna/{a.motifs}"))
        chosen = [find_motif(known, name) for name in a.motif.split(",")]
    judge, right = fit_classifier(real.rows(parts.train), real.rows(parts.val), steps=2000)
    print(f"the judge calls {right:.1%} of validation sequences right")
    for kind in a.models:
        if kind in rows:
            continue
        folder = trained(a.data, real, parts, kind, a.train_steps, a.out)
        row = score_model(folder, real, parts, chosen, judge, count=a.num, steps=a.steps, guidance=a.guidance)
        rows = (json.loads(file.read_text()) if file.exists() else {}) | {kind: row}
        write_json(file, rows)
        print(kind, json.dumps(row), flush=True)
    print(summary(rows))


if __name__ == "__main__":
    main()
