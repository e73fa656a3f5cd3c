"""``manifoldflow evaluate molecules``: what a set of molecules, or a model, is worth."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from manifoldflow.files import write_json
from manifoldflow.tasks.common.files import find_shared
from manifoldflow.tasks.common.tables import plural, share, show
from manifoldflow.tasks.molecules.metrics import chemnet_distance, set_scores
from manifoldflow.tasks.molecules.reading import read_molecules

ZINC = "molecules/zinc_smiles.txt.gz"


def evaluate(
    samples: str | None = None,
    checkpoint: str | None = None,
    reference: str | None = None,
    num: int = 1000,
    distance: bool = True,
    calls: str | None = None,
    out: str | None = None,
    seed: int = 0,
    data_folder: str | None = None,
    reward: str | None = None,
) -> None:
    """Score a file of molecules, or those that a checkpoint makes, beside a reference at the same number.

    Args:
        samples: SMILES list, table or SDF.
        checkpoint: a model whose samples are scored instead; of a GFlowNet also the rank correlation of log P and log R over
            molecules that it was not trained on.
        reference: real molecules (a file); ZINC of the shared data where it is there.
        num: molecules that are drawn from the checkpoint; at most so many of a file are scored.
        distance: compute the Frechet ChemNet distance (minutes for thousands).
        calls: record of a run (calls.jsonl), whose molecules the correlation leaves out; that beside the checkpoint by default.
        out: also write the scores to this JSON file.
        seed: of all draws.
        data_folder: where the shared sets lie.
        reward: of the checkpoint's molecules; its own by default. A function of yours (mine.py:score) must be named.
    """
    if (samples is None) == (checkpoint is None):
        raise ValueError("give either --samples FILE or --checkpoint NAME")
    if num < 2:
        raise ValueError(f"--num must be at least 2, got {num}")
    rows: list[list[Any]] = []
    wanted: dict[str, Any] = {}
    rejected = 0
    if samples is not None:
        found = read_molecules(samples)
        if found.rejected:
            print(found.summary())
        smiles, rejected = found.smiles[:num], len(found.rejected)
    else:
        assert checkpoint is not None
        smiles = _drawn(checkpoint, num, calls, seed, rows, wanted, reward)
    known = _reference(reference, data_folder)
    scores = set_scores(smiles, known)
    total = scores.count + (rejected if samples is not None else 0)
    head: list[list[Any]] = [
        ["valid", share(scores.valid, total)],
        ["different, of the valid", share(scores.unique, scores.valid)],
        ["internal diversity (1 - mean Tanimoto)", scores.diversity],
        ["scaffolds", f"{scores.scaffolds:,}"],
        ["SA score at most 4", share(scores.easy, scores.count)],
        ["PAINS or BRENK alert", share(scores.alerts, scores.count)],
        ["mean SA score", scores.sa],
        ["mean QED", scores.qed],
    ]
    wanted |= asdict(scores)
    if known is not None and scores.novel is not None:
        head.insert(2, ["not in the reference, of the different", share(scores.novel, scores.unique)])
        real = set_scores(_some(known, num, seed + 1), None)
        head.append(["the same of the reference: SA at most 4", share(real.easy, real.count)])
        head.append(["the same of the reference: alerts", share(real.alerts, real.count)])
        if distance:
            count = min(len(smiles), len(known) // 2)
            mixed = _some(known, 2 * count, seed)
            wanted["chemnet_distance"] = chemnet_distance(smiles[:count], mixed[count:])
            wanted["chemnet_floor"] = chemnet_distance(mixed[:count], mixed[count:])
            wanted["chemnet_count"] = count
            head.append([f"Frechet ChemNet distance at n = {count:,}", wanted["chemnet_distance"]])
            head.append([f"its floor: reference against reference at n = {count:,}", wanted["chemnet_floor"]])
    title = f"{plural(len(smiles), 'molecule')} of {samples or checkpoint}"
    show(["measure", "value"], [*head, *rows], title)
    if out is not None:
        write_json(Path(out), wanted)
        print(f"wrote {out}")


def _drawn(
    checkpoint: str,
    num: int,
    calls: str | None,
    seed: int,
    rows: list[list[Any]],
    wanted: dict[str, Any],
    reward: str | None,
) -> list[str]:
    import json

    import manifoldflow as mf
    from manifoldflow.checkpoint import find_checkpoint
    from manifoldflow.tasks.molecules.design import BUILDER, environment, rewarded
    from manifoldflow.tasks.molecules.likelihood import correlation, held_out

    path = find_checkpoint(checkpoint)
    model = mf.load(path)
    if model.builder != BUILDER:
        raise ValueError(f"{path} is no GFlowNet of fragments; sample from it first, and give the file with --samples")
    env = environment(rewarded(model, path, reward))
    generator = torch.Generator().manual_seed(seed)
    smiles = env.to_smiles(model.sample(num, generator=generator))
    record = Path(calls) if calls is not None else path.parent / "calls.jsonl"
    asked: set[str] = set()
    if record.exists():
        asked = {json.loads(line)["key"] for line in record.read_text(encoding="utf-8").splitlines() if line.strip()}
    if callable(env.reward):
        x = held_out(env, min(num, 500), asked.__contains__, seed, model)
        found = correlation(model, x, env.log_reward(x), seed=seed)
        values = torch.as_tensor(env.reward(smiles))
        rows.append([f"mean reward ({model.config['reward']})", float(values.mean())])
        rows.append(
            [
                f"rank correlation of log P and log R, {found.count} molecules not asked for, exponent {env.exponent:g}",
                f"{found.spearman:.3f} ({found.low:.3f}-{found.high:.3f})",
            ]
        )
        wanted |= {"mean_reward": float(values.mean()), "correlation": asdict(found)}
    return smiles


def _reference(path: str | None, data_folder: str | None) -> list[str] | None:
    if path is not None:
        return read_molecules(path).distinct
    try:
        return read_molecules(find_shared(ZINC, data_folder)).distinct
    except FileNotFoundError:
        print(f"no reference: {ZINC} is not there; --reference FILE names real molecules to compare with")
        return None


def _some(smiles: list[str], count: int, seed: int) -> list[str]:
    order = torch.randperm(len(smiles), generator=torch.Generator().manual_seed(seed))[:count]
    return [smiles[i] for i in order.tolist()]
