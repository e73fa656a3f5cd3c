"""Motifs: parts of a real structure that a designed backbone has to contain."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldflow.tasks.proteins.geometry import frames_from_atoms
from manifoldflow.tasks.proteins.reading import read_structure


class Motif(NamedTuple):
    """A motif laid out along the chain to design.

    Attributes:
        x: frames ``{"trans": (1, N, 3), "rots": (1, N, 3, 3)}``, centred on the motif, angstrom.
        mask: bool ``(1, N)``, True where a residue belongs to the motif. Residues of the design beyond N are free.
    """

    x: dict[str, Tensor]
    mask: Tensor


def load_motif(path: str | Path, contig: str) -> Motif:
    """Read a motif from a structure file.

    Args:
        path: a PDB or mmCIF file.
        contig: parts from the N to the C terminus, separated by ``/``: ``A92-99`` takes residues 92 to 99 of chain A
            (author numbering), ``16`` leaves 16 residues to design. ``"20/A92-99/16/A47-54"`` starts with 20 free residues.
            The rest of the design, if it is longer, follows after the last part.

    Raises:
        ValueError: the contig cannot be read, or names residues that the file lacks.
    """
    chains = {chain.chain_id: chain for chain in read_structure(path)}
    parts: list[Tensor | int] = []
    for piece in contig.replace(" ", "").split("/"):
        if piece.isdigit():
            parts.append(int(piece))
            continue
        chain_id, _, residues = piece[:1], piece[:1], piece[1:]
        first, dash, last = residues.partition("-")
        if not dash:
            last = first
        if not (chain_id.isalnum() and first.isdigit() and last.isdigit() and int(first) <= int(last)):
            raise ValueError(
                f"motif {contig!r}: cannot read {piece!r}; write a chain and a range such as A92-99, or a number of free residues"
            )
        if chain_id not in chains:
            raise ValueError(f"motif {contig!r}: {path} has no chain {chain_id}; it has {', '.join(sorted(chains))}")
        chain = chains[chain_id]
        wanted = range(int(first), int(last) + 1)
        rows = {int(number): row for row, number in reversed(list(enumerate(chain.resnum)))}
        if missing := [n for n in wanted if n not in rows]:
            raise ValueError(
                f"motif {contig!r}: {path} lacks residue {missing[0]} of chain {chain_id} ({len(missing)} missing in {piece})"
            )
        parts.append(torch.as_tensor(chain.coords[[rows[n] for n in wanted]]))
    if not any(isinstance(p, Tensor) for p in parts):
        raise ValueError(f"motif {contig!r} holds no residues of the structure; name some, such as A92-99")
    length = sum(p if isinstance(p, int) else len(p) for p in parts)
    coords = torch.zeros(1, length, 4, 3)
    mask = torch.zeros(1, length, dtype=torch.bool)
    at = 0
    for part in parts:
        if isinstance(part, int):
            at += part
            continue
        coords[0, at : at + len(part)], mask[0, at : at + len(part)] = part, True
        at += len(part)
    coords = torch.where(mask[..., None, None], coords - coords[mask][:, 1].mean(0), 0.0)
    return Motif(frames_from_atoms(coords), mask)
