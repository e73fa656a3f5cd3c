"""Motifs: parts of a real structure that a designed backbone has to contain."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from manifoldflow.tasks.proteins.contig import Contig, Free, Kept, NewChain, Part, parse_contig
from manifoldflow.tasks.proteins.geometry import BREAK_OFFSET, frames_from_atoms
from manifoldflow.tasks.proteins.reading import read_structure
from manifoldflow.tasks.proteins.structure import AMINO_ACIDS, THREE_LETTER
from manifoldflow.tasks.proteins.write import chain_letter

FREE_TYPE = AMINO_ACIDS.index("G")


@dataclass(frozen=True)
class Motif:
    """A motif laid out along the chain to design, or several of them in a batch (:func:`stack`).

    Attributes:
        x: frames ``{"trans": (B, N, 3), "rots": (B, N, 3, 3)}``, centred on the motif, angstrom.
        mask: bool ``(B, N)``, True where a residue belongs to the motif. Residues of the design beyond N are free.
        coords: ``(B, N, 4, 3)``, its atoms N, CA, C, O as the structure has them, in the place of ``x``; 0 elsewhere.
        aatype: ``(B, N)`` index in ``AMINO_ACIDS``, G where a residue is free.
        residue_index: ``(B, N)`` for ``cond``: from 0, and 33 more at every new chain.
        chain: ``(B, N)`` number of the chain of the design, from 0.
        records: one per design, what :func:`record` says.
        lengths: residues of each design, as its contig gives them.
    """

    x: dict[str, Tensor]
    mask: Tensor
    coords: Tensor
    aatype: Tensor
    residue_index: Tensor
    chain: Tensor
    records: tuple[dict[str, Any], ...] = ()
    lengths: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        """``x, mask``, for what unpacks the two that a motif once was."""
        return iter((self.x, self.mask))


def load_motif(path: str | Path, contig: str, *, length: int | None = None, seed: int | str = 0) -> Motif:
    """Read a motif from a structure file.

    Args:
        path: a PDB or mmCIF file.
        contig: parts from the N to the C terminus, separated by ``/``: ``A92-99`` takes residues 92 to 99 of chain A
            (author numbering), ``16`` leaves 16 residues to design and ``5-15`` a number that is drawn. ``"20/A92-99/16/A47-54"``
            starts with 20 free residues. ``/0 `` begins a new chain. See :mod:`manifoldflow.tasks.proteins.contig`.
        length: residues of the whole design. If the contig has no ranges, the rest follows after its last part.
        seed: of the free lengths.

    Raises:
        ValueError: the contig cannot be read, names residues that the file lacks, or does not reach the length.
    """
    return lay_out(read_contig(path, contig), path, length=length, seed=seed)


def read_contig(path: str | Path, contig: str) -> Contig:
    """A contig against the chains of a structure file; see :func:`manifoldflow.tasks.proteins.contig.parse_contig`."""
    return parse_contig(contig, read_structure(path), str(path))


def lay_out(contig: Contig, path: str | Path, *, length: int | None = None, seed: int | str = 0) -> Motif:
    """One design of a contig, its free lengths drawn."""
    parts = contig.draw(length, seed)
    total = sum(p.low if isinstance(p, Free) else len(p) for p in parts if not isinstance(p, NewChain))
    coords, mask = torch.zeros(1, total, 4, 3), torch.zeros(1, total, dtype=torch.bool)
    aatype = torch.full((1, total), FREE_TYPE)
    chain = torch.zeros(1, total, dtype=torch.long)
    at = 0
    for part in parts:
        if isinstance(part, NewChain):
            chain[0, at:] += 1
        elif isinstance(part, Free):
            at += part.low
        else:
            here = slice(at, at + len(part))
            coords[0, here] = torch.as_tensor(part.chain.coords[part.begin : part.end])
            aatype[0, here] = torch.as_tensor(part.chain.aatype[part.begin : part.end]).long()
            mask[0, here] = True
            at += len(part)
    # Centred on the CA atoms: a design is, too.
    coords = torch.where(mask[..., None, None], coords - coords[mask][:, 1].mean(0), 0.0)
    index = torch.arange(total)[None] + BREAK_OFFSET * chain
    about = record(contig, parts, chain[0].tolist(), path)
    return Motif(frames_from_atoms(coords), mask, coords, aatype, index, chain, (about,), (total,))


def record(contig: Contig, parts: Sequence[Part], chain: Sequence[int], path: str | Path) -> dict[str, Any]:
    """What is motif in a design and what it was there: names, chains, numbers and insertion codes, for programs.

    ``con_hal_pdb_idx`` and ``con_ref_pdb_idx`` are what RFdiffusion calls the places in the design and in the structure.
    """
    residues, numbers, at = [], _numbers(chain), 0
    for part in parts:
        if isinstance(part, Free):
            at += part.low
        elif isinstance(part, Kept):
            for row in range(part.begin, part.end):
                residues.append(
                    {
                        "chain": chain_letter(chain[at]),
                        "number": numbers[at],
                        "name": THREE_LETTER[int(part.chain.aatype[row])],
                        "source_chain": part.chain.chain_id,
                        "source_number": int(part.chain.resnum[row]),
                        "source_insertion_code": str(part.chain.icode[row]),
                    }
                )
                at += 1
    return {
        "structure": str(path),
        "contig": contig.text,
        "sampled_contig": "/".join(map(str, parts)).replace("//0 /", "/0 "),
        "length": len(chain),
        "motif": residues,
        "con_hal_pdb_idx": [[r["chain"], r["number"]] for r in residues],
        "con_ref_pdb_idx": [
            [
                r["source_chain"],
                f"{r['source_number']}{r['source_insertion_code']}"
                if r["source_insertion_code"]
                else r["source_number"],
            ]
            for r in residues
        ],
    }


def _numbers(chain: Sequence[int]) -> list[int]:
    """Residue numbers from 1 in every chain."""
    count: dict[int, int] = {}
    result = []
    for number in chain:
        count[number] = count.get(number, 0) + 1
        result.append(count[number])
    return result


def stack(motifs: Sequence[Motif]) -> Motif:
    """Motifs of one batch, padded to the longest: free residues and chains that go on."""
    longest = max(m.mask.shape[1] for m in motifs)
    pad = functools.partial(pad_sequence, batch_first=True)
    identity = torch.eye(3).expand(longest, 3, 3)
    rots = [torch.cat([m.x["rots"][0], identity[m.mask.shape[1] :]]) for m in motifs]
    index = [_continued(m.residue_index[0], longest, 1) for m in motifs]
    return Motif(
        {"trans": pad([m.x["trans"][0] for m in motifs]), "rots": torch.stack(rots)},
        pad([m.mask[0] for m in motifs]),
        pad([m.coords[0] for m in motifs]),
        pad([m.aatype[0] for m in motifs], padding_value=FREE_TYPE),
        torch.stack(index),
        torch.stack([_continued(m.chain[0], longest, 0) for m in motifs]),
        tuple(about for m in motifs for about in m.records),
        tuple(n for m in motifs for n in m.lengths),
    )


def _continued(row: Tensor, length: int, step: int) -> Tensor:
    more = torch.arange(1, length - len(row) + 1) * step
    return torch.cat([row, row[-1] + more])


def numbers_of(chain: Tensor) -> Tensor:
    """Residue numbers from 1 in every chain of a design, ``(B, N)``."""
    return torch.tensor([_numbers(row) for row in chain.tolist()])


def keep_atoms(atoms: Tensor, x: dict[str, Tensor], motif: Motif) -> Tensor:
    """Designs with the motif's own atoms: each kept residue is the structure's, moved as its frame was.

    Frames carry ideal residues and an O that follows from the next one; the motif's own atoms differ by 0.05 A, its O by
    up to 0.5 A.

    Args:
        atoms: N, CA, C, O of the designs, ``(B, N, 4, 3)``.
        x: frames of the designs.
        motif: what was kept, of the same batch (or one for all); its N may be shorter.
    """
    n = motif.mask.shape[1]
    true, origin, turn = (v.to(atoms) for v in (motif.coords, motif.x["trans"], motif.x["rots"]))
    local = torch.einsum("bnji,bnaj->bnai", turn, true - origin.unsqueeze(-2))
    placed = torch.einsum("bnij,bnaj->bnai", x["rots"][:, :n], local.expand(len(atoms), -1, -1, -1))
    placed = placed + x["trans"][:, :n].unsqueeze(-2)
    mask = motif.mask.to(atoms.device)[..., None, None]
    return torch.cat([torch.where(mask, placed, atoms[:, :n]), atoms[:, n:]], 1)
