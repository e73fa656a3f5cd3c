"""Reflow: pairs (noise, sample) of a trained flow, filtered for quality, to train a straighter one (ReQFlow; Liu et al. 2023)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

import manifoldflow as mf
from manifoldflow.files import atomic, write_json
from manifoldflow.manifolds.rotation import matrix_to_quaternion
from manifoldflow.reflow import make_pairs as sample_pairs
from manifoldflow.tasks.proteins.geometry import atoms_from_frames
from manifoldflow.tasks.proteins.metrics import ca_distances, clashes, radius_of_gyration
from manifoldflow.tasks.proteins.relax import relax
from manifoldflow.tasks.proteins.secondary_structure import assign

FORMAT = "manifoldflow-pairs-1"


class PairDataset(Dataset[dict[str, Tensor]]):
    """Stored pairs of source and sample.

    Args:
        folder: made by :func:`make_pairs`.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / "pairs.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder}: no pairs here (pairs.safetensors is missing); make them with `manifoldflow reflow proteins`"
            )
        self.tensors = load_file(path)
        self.offset = self.tensors.pop("offset").tolist()

    @staticmethod
    def is_here(folder: str | Path) -> bool:
        """Whether the folder holds pairs."""
        return (Path(folder) / "pairs.safetensors").is_file()

    @property
    def lengths(self) -> list[int]:
        """Residues of each pair."""
        return [b - a for a, b in zip(self.offset[:-1], self.offset[1:], strict=True)]

    def __len__(self) -> int:
        return len(self.offset) - 1

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        part = slice(self.offset[i], self.offset[i + 1])
        return {key: value[part] for key, value in self.tensors.items()}

    @staticmethod
    def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        """Pad pairs to a batch with ``x`` (the sample), ``x0`` (its source) and ``mask``."""
        mask = pad_sequence([torch.ones(len(item["trans"]), dtype=torch.bool) for item in items], batch_first=True)

        def padded(key: str) -> Tensor:
            value = pad_sequence([item[key] for item in items], batch_first=True)
            if not key.endswith("rots"):
                return value
            one = mf.SO3().origin() if value.ndim == 4 else mf.UnitQuaternion().origin()
            return torch.where(mask.reshape(*mask.shape, *(1,) * one.ndim), value, one)

        return {
            "x": {"trans": padded("trans"), "rots": padded("rots")},
            "x0": {"trans": padded("source_trans"), "rots": padded("source_rots")},
            "mask": mask,
            "cond": {},
        }


def passes(coords: Tensor, mask: Tensor, rg_trend: tuple[float, float] = (2.2, 0.38)) -> Tensor:
    """Which samples are good enough to learn from, bool ``(B,)``.

    At least 95 % of CA-CA neighbours within 3.8 +- 0.25 A, no CA clash, at least 35 % helix and strand, and a radius of
    gyration within 25 % of ``a * N**b``. Designability would be the paper's filter; it needs networks that we cannot ship.

    Args:
        coords: ``(B, N, 4, 3)`` angstrom.
        mask: bool ``(B, N)``.
        rg_trend: (a, b) of the trend.
    """
    distance, valid = ca_distances(coords, mask)
    good = ((distance - 3.8).abs() < 0.25) & valid
    neighbours = good.sum(-1) / valid.sum(-1).clamp_min(1) >= 0.95
    length = mask.sum(-1)
    structured = ((assign(coords, mask) > 0) & mask).sum(-1) / length >= 0.35
    expected = rg_trend[0] * length ** rg_trend[1]
    compact = (radius_of_gyration(coords, mask) / expected - 1).abs() <= 0.25
    return neighbours & structured & compact & (clashes(coords, mask) == 0)


def make_pairs(
    flow: mf.Flow,
    out: str | Path,
    lengths: Sequence[int],
    *,
    steps: int = 100,
    batch_size: int = 16,
    seed: int = 0,
    callback: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Sample with ``flow``, relax, keep the pairs that pass the filter, and write them.

    Learning from relaxed samples (:func:`manifoldflow.tasks.proteins.relax.relax`) teaches the new flow sound peptide bonds.
    What is done so far is written every few batches and on Ctrl-C.

    Args:
        flow: the trained flow.
        out: folder for ``pairs.safetensors`` and ``pairs.json``.
        lengths: one per pair to try.
        steps: of the sampler.
        callback: called with the numbers of tried and kept pairs after each batch.

    Returns:
        ``(kept, tried)``.

    Raises:
        ValueError: if no sample passes.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(next(flow.parameters()).device).manual_seed(seed)
    kept: dict[str, list[Tensor]] = {"trans": [], "rots": [], "source_trans": [], "source_rots": []}
    ordered = sorted(lengths)
    tried, space = 0, mf.Centered(mf.Euclidean(3))

    def write() -> None:
        if kept["trans"]:
            _write(folder, kept, {"tried": tried, "kept": len(kept["trans"]), "steps": steps, "seed": seed})

    for count, at in enumerate(range(0, len(ordered), batch_size)):
        part = ordered[at : at + batch_size]
        longest = max(part)
        mask = torch.arange(longest, device=generator.device) < torch.tensor(part, device=generator.device).unsqueeze(
            -1
        )
        try:
            pairs = sample_pairs(
                flow, (len(part), longest), steps=steps, batch_size=len(part), mask=mask, generator=generator
            )
        except KeyboardInterrupt:
            write()
            raise
        x0: Any = pairs.x0
        x: Any = pairs.x1
        is_quaternion = x["rots"].ndim == 3
        x = relax(x, mask)
        x = {
            "trans": space.center(x["trans"], mask),
            "rots": matrix_to_quaternion(x["rots"]) if is_quaternion else x["rots"],
        }
        good = passes(atoms_from_frames(x, mask), mask)
        tried += len(part)
        for i in good.nonzero().flatten().tolist():
            n = part[i]
            for key, value in (
                ("trans", x["trans"]),
                ("rots", x["rots"]),
                ("source_trans", x0["trans"]),
                ("source_rots", x0["rots"]),
            ):
                kept[key].append(value[i, :n].cpu())
        if callback is not None:
            callback(tried, len(kept["trans"]))
        if count % 8 == 7:
            write()
    if not kept["trans"]:
        raise ValueError(f"none of {tried} samples passed the quality filter; train the flow longer or use more steps")
    write()
    return len(kept["trans"]), tried


def _write(folder: Path, kept: dict[str, list[Tensor]], facts: dict[str, int]) -> None:
    sizes = torch.tensor([0, *(len(v) for v in kept["trans"])])
    tensors = {key: torch.cat(value).contiguous() for key, value in kept.items()} | {"offset": sizes.cumsum(0)}
    with atomic(folder / "pairs.safetensors") as fresh:
        save_file(tensors, fresh, metadata={"format": FORMAT})
    write_json(folder / "pairs.json", facts)
