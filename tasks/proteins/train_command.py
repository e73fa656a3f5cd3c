"""What ``manifoldflow train proteins`` runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import manifoldflow as mf
from manifoldflow.tasks.common.runs import command_line
from manifoldflow.tasks.proteins.batches import TokenBatches
from manifoldflow.tasks.proteins.data import ProteinDataset, collate, split_by_cluster
from manifoldflow.tasks.proteins.flow import ProteinConfig, build
from manifoldflow.training import TrainConfig, fit


def train(
    data: str,
    out: str = "runs/proteins",
    model: ProteinConfig = ProteinConfig(),  # noqa: B008 - read, never changed
    training: TrainConfig = TrainConfig(),  # noqa: B008
    min_length: int = 50,
    max_length: int = 128,
    crop: bool = False,
    max_tokens: int = 800,
    validation_share: float = 0.05,
    init: str | None = None,
    resume: bool = False,
) -> None:
    """Train a protein backbone flow.

    Args:
        data: data set folder made by `manifoldflow prepare proteins`, or pairs made by `manifoldflow reflow proteins`.
        out: folder for the checkpoint, curves and resume files.
        model: the flow and its network.
        training: the optimiser, the schedule and the devices.
        min_length: leave out shorter chains.
        max_length: longer chains are left out, or cropped with `--crop true`.
        crop: train on random contiguous pieces of longer chains.
        max_tokens: residues in a batch, padding included, over all processes.
        validation_share: share of chains for validation; whole sequence clusters.
        init: checkpoint (file or name) to start from instead of random weights; its model configuration is used.
        resume: continue the run in `out`, or start it if there is none.
    """
    from manifoldflow.tasks.proteins.reflow import PairDataset

    seed = training.seed
    torch.manual_seed(seed)
    flow = build(model) if init is None else mf.load(init).train()
    facts: dict[str, Any] = {
        "command": command_line(),
        "data": str(Path(data).name),
        "init": init,
    }
    if PairDataset.is_here(data):
        pairs = PairDataset(data)
        held = max(1, round(validation_share * len(pairs)))
        train_set: Any = torch.utils.data.Subset(pairs, range(held, len(pairs)))
        held_out: Any = torch.utils.data.Subset(pairs, range(held))
        lengths, held_lengths, gather = pairs.lengths[held:], pairs.lengths[:held], pairs.collate
    else:
        try:
            names, held_names = split_by_cluster(data, validation_share, seed)
        except ValueError as error:
            raise ValueError(f"--validation-share {validation_share:g}: {error}") from error
        train_set = ProteinDataset(
            data, names=names, min_length=min_length, max_length=max_length, crop=crop, seed=seed
        )
        held_out = ProteinDataset(data, names=held_names, min_length=min_length, max_length=max_length, crop=crop)
        lengths, held_lengths, gather = train_set.lengths, held_out.lengths, collate
    if not lengths or not held_lengths:
        raise ValueError(
            f"{data}: {len(lengths)} chains for training and {len(held_lengths)} for validation, but each needs some"
        )
    facts |= {
        "chains": len(train_set),
        "validation_chains": len(held_out),
        "max_tokens": max_tokens,
        "lengths": [min(lengths), max(lengths)],
    }

    def batches(start: int) -> Iterator[Any]:
        sampler = TokenBatches(lengths, max_tokens, seed=seed)
        epoch, skip = divmod(start, len(sampler))
        while True:
            sampler.set_epoch(epoch)
            if isinstance(train_set, ProteinDataset):
                train_set.set_epoch(epoch)
            order = list(sampler)[skip:]
            yield from DataLoader(
                train_set, batch_sampler=order, collate_fn=gather, pin_memory=torch.cuda.is_available()
            )
            epoch, skip = epoch + 1, 0

    checks = DataLoader(
        held_out, batch_sampler=TokenBatches(held_lengths, max_tokens, shuffle=False), collate_fn=gather
    )
    fit(flow, batches, training, out=out, validation=checks, resume=resume, facts=facts)
    print(
        f"wrote {out}/model.safetensors; try: manifoldflow sample proteins --checkpoint {out}/model.safetensors --out designs/"
    )
