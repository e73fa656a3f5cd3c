"""Letters of DNA as tokens, codes for several letters, and the other strand."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

LETTERS = "ACGT"
IUPAC = {
    **{letter: letter for letter in LETTERS},
    **{"U": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC"},
    **{"B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT"},
}
"""What each code allows (NC-IUB 1984)."""

Unknown = Literal["error", "drop", "random"]

_TOKEN = np.full(256, 255, dtype=np.uint8)  # 255: not a code; 254: a code for several letters
for _code, _allowed in IUPAC.items():
    for _byte in (ord(_code), ord(_code.lower())):
        _TOKEN[_byte] = LETTERS.index(_allowed) if len(_allowed) == 1 else 254
_LETTER = np.frombuffer(LETTERS.encode(), dtype=np.uint8)


def encode(
    sequences: Sequence[str], *, unknown: Unknown = "error", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences as tokens 0 to 3, in either case, U as T.

    Args:
        sequences: strings of IUPAC codes.
        unknown: what to do with codes for several letters, such as N: raise; leave the sequence out; or draw one of the letters.
        generator: of the draws.

    Returns:
        Tokens ``(B, L)`` int64, padded with 0; the mask of real positions, bool ``(B, L)``; and the numbers ``(B,)`` of the
        sequences that were kept.

    Raises:
        ValueError: a letter that is no code, an empty sequence, or with ``unknown="error"`` a code for several letters.
    """
    if unknown not in ("error", "drop", "random"):
        raise ValueError(f"unknown must be 'error', 'drop' or 'random', got {unknown!r}")
    lengths = np.array([len(s) for s in sequences], dtype=np.int64)
    if len(lengths) and lengths.min() == 0:
        raise ValueError(f"sequence {int(lengths.argmin())} is empty")
    text = np.frombuffer("".join(sequences).encode("ascii", "replace"), dtype=np.uint8)
    flat = _TOKEN[text].astype(np.int64)
    starts = np.concatenate([[0], lengths.cumsum()])
    if (bad := np.flatnonzero(flat == 255)).size:
        raise ValueError(f"{_where(bad[0], starts, sequences)} is no letter of DNA; allowed are {''.join(IUPAC)}")
    several = np.flatnonzero(flat == 254)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    keep = np.ones(len(lengths), dtype=bool)
    if several.size and unknown == "error":
        raise ValueError(
            f"{_where(several[0], starts, sequences)} stands for several letters ({several.size} such in all); "
            "choose unknown='drop' or 'random'"
        )
    if unknown == "drop":
        keep[owner[several]] = False
    elif several.size:
        allowed = np.zeros((256, 4))
        for code, letters in IUPAC.items():
            allowed[[ord(code), ord(code.lower())]] = [letter in letters for letter in LETTERS]
        weights = torch.from_numpy(allowed[text[several]])
        flat[several] = torch.multinomial(weights, 1, generator=generator).squeeze(1).numpy()
    longest = int(lengths[keep].max()) if keep.any() else 0
    mask = np.arange(longest) < lengths[keep, None]
    tokens = np.zeros(mask.shape, dtype=np.int64)
    tokens[mask] = flat[keep[owner]]
    return torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(np.flatnonzero(keep))


def _where(at: int, starts: np.ndarray, sequences: Sequence[str]) -> str:
    row = int(np.searchsorted(starts, at, side="right") - 1)
    column = int(at - starts[row])
    return f"sequence {row}, position {column + 1}: {sequences[row][column]!r}"


def decode(tokens: Tensor, mask: Tensor | None = None) -> list[str]:
    """Tokens ``(B, L)`` as strings; padding is left out.

    Raises:
        ValueError: a token that is not 0 to 3.
    """
    values = tokens.detach().cpu().numpy()
    if values.ndim != 2:
        raise ValueError(f"tokens must be (B, L), got {tuple(values.shape)}")
    if values.size and (values.min() < 0 or values.max() > 3):
        raise ValueError(f"tokens of DNA are 0 to 3, got {values.min()} to {values.max()}")
    letters = _LETTER[values]
    if mask is None:
        return [row.tobytes().decode() for row in letters]
    kept = mask.cpu().numpy()
    return [row[real].tobytes().decode() for row, real in zip(letters, kept, strict=True)]


def reverse_complement(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The other strand, 5' to 3', ``(..., L)``; with a mask every sequence keeps its padding at the end."""
    turned = 3 - tokens.flip(-1)
    if mask is None:
        return turned
    length = mask.sum(-1, keepdim=True)
    place = torch.arange(tokens.shape[-1], device=tokens.device)
    from_end = (tokens.shape[-1] - length + place).clamp_max(tokens.shape[-1] - 1)
    return torch.where(mask, turned.gather(-1, from_end), 0)


def allowed_letters(pattern: str) -> Tensor:
    """Which letters an IUPAC pattern allows at each place, bool ``(W, 4)``.

    Raises:
        ValueError: an empty pattern, or a letter that is no code.
    """
    if not pattern:
        raise ValueError("the pattern is empty")
    if bad := [c for c in pattern.upper() if c not in IUPAC]:
        raise ValueError(f"pattern {pattern!r}: {bad[0]!r} is no letter of DNA; allowed are {''.join(IUPAC)}")
    return torch.tensor([[letter in IUPAC[c] for letter in LETTERS] for c in pattern.upper()])
