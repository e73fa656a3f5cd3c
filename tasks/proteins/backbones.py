"""The backbones of many structure files, or of a data set, in one padded batch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from manifoldflow.tasks.proteins.data import ProteinDataset
from manifoldflow.tasks.proteins.geometry import BREAK_OFFSET
from manifoldflow.tasks.proteins.reading import SUFFIXES, count_models, read_models, read_structure, split_suffix
from manifoldflow.tasks.proteins.structure import Chain

Models = Literal["auto", "first", "last", "each"]
_TRAJECTORY = re.compile(r"(?:^|[_.\-])traj(?:ectory|ectories|s)?(?:$|[_.\-\d])", re.IGNORECASE)


def is_structure(path: Path) -> bool:
    """Whether the name is that of a structure file; hidden files are not."""
    return split_suffix(path)[1] in SUFFIXES and not path.name.startswith(".")


def is_trajectory(path: Path) -> bool:
    """Whether the name is that of a way from noise to a backbone: ``*_trajectory*``, ``*_traj.pdb``, ``bb_traj_1.pdb``."""
    return _TRAJECTORY.search(path.name) is not None


def structure_files(folder: Path) -> list[Path]:
    """The structures of a folder and the folders in it, in order of their names, trajectories left out."""
    return [path for path in _all_structures(folder) if not is_trajectory(path)]


def _all_structures(folder: Path) -> list[Path]:
    inside = (p for p in folder.rglob("*") if is_structure(p) and p.is_file())
    return sorted(p for p in inside if not any(part.startswith(".") for part in p.relative_to(folder).parts))


@dataclass
class Backbones:
    """Chains that were read, what each is called, and what was not read.

    Args:
        chains: one per row.
        files, models: where each comes from.
        left_out: ``(file, reason)`` of what holds no chain to measure.
        unread: how many further chains the files hold.
    """

    chains: list[Chain] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    models: list[int] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    unread: int = 0


def collect(designs: str | Path, models: Models = "auto", chains: Literal["first", "all"] = "first") -> Backbones:
    """Read the chains of a file, or of the files of a folder and the folders in it. Bad files are listed, not raised.

    Args:
        designs: file or folder.
        models: which of the models of a file: the first, the last, or each. ``"auto"`` reads each of a file that was
            named, and leaves trajectories (by name, or for having several models) out of a folder.
        chains: the first of each file, or all.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a folder without structure files, or nothing in it can be read; a file that cannot be read.
    """
    folder = Path(designs)
    if not folder.exists():
        raise FileNotFoundError(
            f"{folder}: no such file or folder; make designs with `manifoldflow sample proteins --out {folder}`"
        )
    files = [folder] if folder.is_file() else _all_structures(folder)
    if not files:
        raise ValueError(f"{folder}: holds no structure files ({', '.join(SUFFIXES)}), nor do the folders in it")
    result = Backbones()
    for path in files:
        try:
            found = _read(path, models, in_folder=not folder.is_file())
        except (ValueError, OSError) as error:
            if folder.is_file():
                raise
            result.left_out.append((path, str(error).removeprefix(f"{path}: ")))
            continue
        for number, members in found:
            wanted = members if chains == "all" else members[:1]
            result.unread += len(members) - len(wanted)
            for chain in wanted:
                result.chains.append(chain)
                result.files.append(path)
                result.models.append(number)
    if not result.chains:
        path, reason = result.left_out[0]
        raise ValueError(f"{folder}: none of {len(files)} files can be measured; the first, {path.name}: {reason}")
    return result


def _read(path: Path, models: Models, in_folder: bool) -> list[tuple[int, list[Chain]]]:
    """(Model, chains) of a file."""
    if in_folder and models == "auto":
        reason = "" if not is_trajectory(path) else "a trajectory by its name"
        if not reason and (count := count_models(path)) > 1:
            reason = f"{count} models"
        if reason:
            raise ValueError(f"{path}: {reason}; give the file itself or --models each|first|last to measure it")
    if models in ("first", "last"):
        number = 1 if models == "first" else count_models(path)
        found = [(number, read_structure(path, number))]
    else:
        found = list(enumerate(read_models(path), 1))
    for _, members in found:
        for chain in members[:1]:
            if len(chain) < 2:
                raise ValueError(f"{path}: the first chain has one residue only; a backbone has at least 2")
    return [(number, [chain for chain in members if len(chain) > 1]) for number, members in found]


def numbering(chain: Chain) -> Tensor:
    """``residue_index`` of a chain, ``(N,)``: the bonds that it promises, not those that it keeps.

    Consecutive residue numbers (and insertion codes of one number) promise a bond, whatever lies between the atoms; so
    does a bond over a jump of the numbering. Only a jump without a bond is a gap, for which the index rises by 33 more.
    """
    step = torch.as_tensor(chain.resnum[1:].astype("int64") - chain.resnum[:-1].astype("int64"))
    is_gap = torch.as_tensor(chain.break_after[:-1]) & ((step < 0) | (step > 1))
    return torch.arange(len(chain)) + BREAK_OFFSET * torch.cat([torch.zeros(1, dtype=torch.long), is_gap.cumsum(0)])


def padded(chains: Sequence[Chain]) -> tuple[Tensor, Tensor, Tensor]:
    """Chains in one batch: coords ``(B, N, 4, 3)`` angstrom, mask ``(B, N)``, residue_index ``(B, N)`` (:func:`numbering`)."""
    coords = pad_sequence([torch.as_tensor(c.coords) for c in chains], batch_first=True)
    mask = pad_sequence([torch.ones(len(c), dtype=torch.bool) for c in chains], batch_first=True)
    return coords, mask, pad_sequence([numbering(c) for c in chains], batch_first=True)


def read_backbones(files: list[Path]) -> tuple[Tensor, Tensor, Tensor]:
    """First chain of each file, padded: coords ``(B, N, 4, 3)``, mask ``(B, N)``, residue_index ``(B, N)``."""
    chains = [read_structure(path)[0] for path in files]
    for path, chain in zip(files, chains, strict=True):
        if len(chain) < 2:
            raise ValueError(f"{path}: the first chain has one residue only; a backbone has at least 2")
    return padded(chains)


def padded_set(data: str) -> tuple[Tensor, Tensor, Tensor]:
    """All chains of a data set, padded: coords, mask, residue_index."""
    dataset = ProteinDataset(data)
    items = [dataset[i] for i in range(len(dataset))]
    coords = pad_sequence([item["coords"] for item in items], batch_first=True)
    mask = pad_sequence([torch.ones(len(item["coords"]), dtype=torch.bool) for item in items], batch_first=True)
    return coords, mask, pad_sequence([item["residue_index"] for item in items], batch_first=True)
