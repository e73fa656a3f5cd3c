"""Write backbones as PDB and mmCIF files that the usual viewers and libraries read back."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifoldflow.files import write_text
from manifoldflow.tasks.proteins.formats import Sample, cif_text, pdb_atoms, pdb_text
from manifoldflow.tasks.proteins.geometry import atoms_from_frames
from manifoldflow.tasks.proteins.structure import AMINO_ACIDS, THREE_LETTER

Backbones = Tensor | NDArray[Any] | Mapping[str, Tensor]
PerResidue = Tensor | NDArray[Any] | Sequence[Any] | None

# Glycine is the one residue that N, CA, C and O make complete; any other name would declare side chains missing.
_DEFAULT_TYPE = AMINO_ACIDS.index("G")


def write_pdb(
    x: Backbones,
    mask: PerResidue = None,
    out: str | Path = "designs",
    *,
    residue_index: PerResidue = None,
    resnum: PerResidue = None,
    aatype: PerResidue = None,
    chain_id: str | Sequence[str] = "A",
    bfactor: PerResidue = None,
    names: Sequence[str] | None = None,
    icode: PerResidue = None,
    chain: PerResidue = None,
) -> list[Path]:
    """Write one PDB file per sample. Nothing is written if a sample does not fit the format; each file is atomic.

    Args:
        x: frames ``{"trans": (B, N, 3) angstrom, "rots": (B, N, 3, 3)}`` or atoms N, CA, C, O ``(B, N, 4, 3)``; the
            batch axis may be left out.
        mask: bool ``(B, N)``, True = real; the rest is not written.
        out: a folder (made if needed) for ``sample_000.pdb`` and so on, or a ``.pdb`` file if there is one sample.
        residue_index: ``(B, N)`` as in ``cond``, from 0 and jumping at a chain break; numbers are this plus 1.
        resnum: ``(B, N)`` residue numbers as they are to be written, instead of ``residue_index`` plus 1.
        aatype: ``(B, N)`` index in ``AMINO_ACIDS``, 20 is written as UNK. Default: GLY, complete with these atoms.
        chain_id: chain id, or one per sample.
        bfactor: ``(B, N)`` per residue, for example a confidence. Default 0.
        names: file stems. Default ``sample_000``, ``sample_001``, ...
        icode: ``(B, N)`` insertion codes as strings, ``""`` for none.
        chain: ``(B, N)`` number of the chain of each residue, from 0, instead of one ``chain_id``; they are called A, B, ...

    Returns:
        The files, in the order of the samples.

    Raises:
        ValueError: shapes that do not match, no residues, coordinates not finite or beyond the PDB's 8 columns, more
            than 99,999 atoms, numbers beyond -999..9999, a chain id of more than one character, or names that clash.
    """
    samples = _samples(x, mask, residue_index, resnum, aatype, chain_id, bfactor, names, icode, chain)
    return _write_files(samples, Path(out), (".pdb", ".ent"), pdb_text)


def write_cif(
    x: Backbones,
    mask: PerResidue = None,
    out: str | Path = "designs",
    *,
    residue_index: PerResidue = None,
    resnum: PerResidue = None,
    aatype: PerResidue = None,
    chain_id: str | Sequence[str] = "A",
    bfactor: PerResidue = None,
    names: Sequence[str] | None = None,
    icode: PerResidue = None,
    chain: PerResidue = None,
) -> list[Path]:
    """Write one mmCIF file per sample; the same arguments as :func:`write_pdb`, and no limits of size."""
    samples = _samples(x, mask, residue_index, resnum, aatype, chain_id, bfactor, names, icode, chain)
    return _write_files(samples, Path(out), (".cif", ".mmcif"), cif_text)


def write_trajectory(
    coords: Backbones,
    path: str | Path,
    *,
    residue_index: PerResidue = None,
    resnum: PerResidue = None,
    aatype: PerResidue = None,
    chain_id: str = "A",
    chain: PerResidue = None,
) -> Path:
    """Write the states of one backbone as a PDB file with one MODEL per state.

    Args:
        coords: ``(S, N, 4, 3)`` angstrom, or frames with a leading axis S.
        path: a ``.pdb`` file.
        residue_index, resnum, aatype: ``(N,)``, the same for all states; see :func:`write_pdb`.
        chain_id: chain id.
        chain: ``(N,)`` numbers of chains instead; see :func:`write_pdb`.
    """
    path = Path(path)
    if path.suffix.lower() not in (".pdb", ".ent"):
        raise ValueError(f"{path}: a trajectory is a .pdb file")
    states = (coords["trans"] if isinstance(coords, Mapping) else coords).shape[0]
    if not 1 <= states <= 9999:
        raise ValueError(f"{path}: a PDB file holds 1 to 9999 models, got {states}; write every k-th state")
    names = [f"state {i + 1}" for i in range(states)]
    index, numbers, kinds, owner = (
        None if v is None else torch.as_tensor(v).expand(states, -1) for v in (residue_index, resnum, aatype, chain)
    )
    samples = _samples(coords, None, index, numbers, kinds, chain_id, None, names, None, owner)
    lines = []
    for number, sample in enumerate(samples, 1):
        lines += [f"MODEL     {number:4d}".ljust(80), *pdb_atoms(sample), "ENDMDL".ljust(80)]
    write_text(path, "\n".join([*lines, "END".ljust(80), ""]))
    return path


def _samples(
    x: Backbones,
    mask: PerResidue,
    residue_index: PerResidue,
    resnum: PerResidue,
    aatype: PerResidue,
    chain_id: str | Sequence[str],
    bfactor: PerResidue,
    names: Sequence[str] | None,
    icode: PerResidue,
    chain: PerResidue,
) -> list[Sample]:
    """Check the arguments and take the padding off."""
    is_frames = isinstance(x, Mapping)
    lead = x["trans"] if isinstance(x, Mapping) else x
    if lead.ndim == (2 if is_frames else 3):
        x = {key: value.unsqueeze(0) for key, value in x.items()} if isinstance(x, Mapping) else x[None]
        lead = lead[None]
    wanted = "frames with trans (B, N, 3)" if is_frames else "atoms of shape (B, N, 4, 3)"
    if tuple(lead.shape[2:]) != ((3,) if is_frames else (4, 3)) or lead.ndim != (3 if is_frames else 4):
        raise ValueError(f"expected {wanted}, got shape {tuple(lead.shape)}")
    shape = (int(lead.shape[0]), int(lead.shape[1]))
    given = {"mask": mask, "residue_index": residue_index, "resnum": resnum, "aatype": aatype, "bfactor": bfactor}
    given |= {"icode": icode, "chain": chain}
    rows: dict[str, NDArray[Any]] = {}
    for key, value in given.items():
        if value is None:
            continue
        array = np.asarray(value, "U1") if key == "icode" else torch.as_tensor(value).detach().cpu().numpy()
        rows[key] = array[None] if array.ndim == 1 else array
        if rows[key].shape != shape:
            raise ValueError(f"{key} has shape {array.shape}, expected {shape}")
    if isinstance(x, Mapping):
        frames = {key: x[key].detach() for key in ("trans", "rots")}
        like = frames["trans"].device
        index = None if residue_index is None else torch.as_tensor(rows["residue_index"], device=like)
        real = None if mask is None else torch.as_tensor(rows["mask"], device=like).bool()
        atoms = atoms_from_frames(frames, real, index)
    else:
        atoms = torch.as_tensor(x)
    coords = atoms.detach().cpu().double().numpy()
    chain_ids = [chain_id] * shape[0] if isinstance(chain_id, str) else list(chain_id)
    stems = [f"sample_{i:03d}" for i in range(shape[0])] if names is None else list(names)
    for key, values in (("chain_id", chain_ids), ("names", stems)):
        if len(values) != shape[0]:
            raise ValueError(f"{key} has {len(values)} entries for {shape[0]} samples")
    if len(set(stems)) != len(stems):
        raise ValueError("names must be unique: each is a file")
    samples = []
    for i, (stem, one) in enumerate(zip(stems, chain_ids, strict=True)):
        keep = rows["mask"][i].astype(bool) if "mask" in rows else np.ones(shape[1], bool)
        count = int(keep.sum())
        if not count:
            raise ValueError(f"{stem}: no residues to write")
        bad = ~np.isfinite(coords[i][keep]).all((1, 2))
        if bad.any():
            raise ValueError(
                f"{stem}: coordinates of {int(bad.sum())} residues are not finite, first {bad.argmax() + 1}"
            )
        number = np.arange(1, count + 1)
        if "resnum" in rows:
            number = rows["resnum"][i][keep]
        elif "residue_index" in rows:
            number = rows["residue_index"][i][keep] + 1
        kind = rows["aatype"][i][keep] if "aatype" in rows else np.full(count, _DEFAULT_TYPE)
        if kind.min() < 0 or kind.max() >= len(AMINO_ACIDS):
            raise ValueError(f"{stem}: aatype must be in 0..{len(AMINO_ACIDS) - 1}, found {kind.min()}..{kind.max()}")
        codes = rows["icode"][i][keep].tolist() if "icode" in rows else [""] * count
        owner = [chain_letter(k) for k in rows["chain"][i][keep].tolist()] if "chain" in rows else [one] * count
        if len(set(zip(owner, number.tolist(), codes, strict=True))) != count:
            raise ValueError(f"{stem}: residue numbers repeat; a reader would merge those residues")
        if any(a != b and b in owner[:k] for k, (a, b) in enumerate(pairwise(owner), 1)):
            raise ValueError(f"{stem}: the residues of a chain must stand together")
        factor = rows["bfactor"][i][keep] if "bfactor" in rows else np.zeros(count)
        if not np.isfinite(factor).all():
            raise ValueError(f"{stem}: bfactor is not finite")
        residue = [THREE_LETTER[k] for k in kind.tolist()]
        samples.append(Sample(stem, owner, coords[i][keep], number.tolist(), codes, residue, factor.tolist()))
    return samples


def _write_files(
    samples: list[Sample], out: Path, suffixes: tuple[str, ...], text_of: Callable[[Sample], str]
) -> list[Path]:
    is_file = out.suffix.lower() in suffixes and not out.is_dir()
    if is_file and len(samples) != 1:
        raise ValueError(f"{out}: is one file, but there are {len(samples)} samples; give a folder")
    if not is_file and out.suffix and not out.is_dir():
        raise ValueError(f"{out}: expected a folder or a file ending in {' or '.join(suffixes)}")
    if not is_file and out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder")
    if not is_file and any(Path(s.name).name != s.name or s.name in ("", ".", "..") for s in samples):
        raise ValueError("names must be plain file stems, without a folder")
    paths = [out] if is_file else [out / f"{sample.name}{suffixes[0]}" for sample in samples]
    texts = [text_of(sample) for sample in samples]  # all before the first file: a bad sample leaves no half set
    for path, text in zip(paths, texts, strict=True):
        write_text(path, text)
    return paths


def chain_letter(number: int) -> str:
    """Chain ids of a design by number: A, B, ..., Z, a, ..., z, 0, ..., 9, C62, ..."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return letters[number] if number < len(letters) else f"C{number}"
