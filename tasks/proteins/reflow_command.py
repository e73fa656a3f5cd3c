"""What ``manifoldflow reflow proteins`` runs."""

import torch

import manifoldflow as mf
from manifoldflow.tasks.proteins.sample_command import find_device


def reflow(
    out: str,
    checkpoint: str = "proteins",
    num: int = 1000,
    min_length: int = 60,
    max_length: int = 128,
    steps: int = 30,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Make (noise, sample) pairs of a trained flow for reflow; then train on them with `train --data PAIRS --init CHECKPOINT`.

    Args:
        out: folder for the pairs.
        checkpoint: the trained flow.
        num: samples to try; those that fail the quality filter are left out.
        min_length: shortest backbone.
        max_length: longest backbone.
        steps: sampling steps.
        batch_size: backbones that are made together.
        seed: of the random draws.
        device: cpu, cuda, or auto.
    """
    from rich.progress import Progress

    from manifoldflow.tasks.proteins.reflow import PairDataset, make_pairs

    for name, value in (("num", num), ("steps", steps), ("batch-size", batch_size)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if PairDataset.is_here(out):
        raise FileExistsError(f"{out} already holds pairs; choose another folder, or delete it first")
    if not 2 <= min_length <= max_length:
        raise ValueError(f"lengths must satisfy 2 <= min <= max, got {min_length} and {max_length}")
    where = find_device(device)
    flow = mf.load(checkpoint, device=where)
    lengths = torch.randint(min_length, max_length + 1, (num,), generator=torch.Generator().manual_seed(seed)).tolist()
    with Progress() as progress:
        task = progress.add_task("sampling pairs", total=num)
        kept, tried = make_pairs(
            flow,
            out,
            lengths,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            callback=lambda tried, kept: progress.update(task, completed=tried),
        )
    print(
        f"kept {kept} of {tried} pairs in {out}/; "
        f"next: manifoldflow train proteins --data {out} --init {checkpoint} --out runs/reflow"
    )
