"""Which network learns more of molecules per processor second, our own of pairs and vectors or one of e3nn's tensor products?

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/equivariant_network_vs_e3nn.py ../shared/data/molecules/gdb7_3d.npz

Same flow, same batches, the same optimiser (Adam, 1e-3), the same processor seconds; both take turns in one process. The network
of e3nn has the usual form: features of scalars and vectors (0e, 1o), messages over all ordered pairs as tensor products with the
spherical harmonics of the direction (l = 0, 1), whose weights come from the distance and the bond, gates, and heads like ours.
Printed: milliseconds a molecule and step, parameters, and the loss on held-back molecules when the time is over.
"""

import argparse
import time

import torch
from torch import Tensor, nn

from manifoldflow.field import edges_of_pairs, pairs_of_edges
from manifoldflow.tasks.molecules import three_d
from manifoldflow.tasks.molecules.conformers import load_conformers
from manifoldflow.tasks.molecules.three_d_model import TIMES, MoleculeNetwork, Radial, hot, time_features


class E3nnNetwork(nn.Module):
    """The same signature as :class:`MoleculeNetwork`."""

    def __init__(
        self, kinds: int, charges: int, bonds: int, width: int = 48, vectors: int = 12, depth: int = 3
    ) -> None:
        super().__init__()
        from e3nn import nn as enn
        from e3nn import o3

        self.kinds, self.charges, self.bonds, self.radial = kinds, charges, bonds, Radial(16)
        self.o3 = o3
        hidden = o3.Irreps(f"{width}x0e + {vectors}x1o")
        gates = o3.Irreps(f"{width}x0e + {vectors}x0e + {vectors}x1o")
        atom, pair = kinds + charges + bonds, self.radial.size + bonds
        self.first = nn.Linear(2 * atom + TIMES + 1, width)
        self.pair_in = nn.Linear(2 * pair, 32)
        self.vectors, self.width = vectors, width
        sphere = o3.Irreps("1x0e + 1x1o")
        self.products, self.weights, self.mixes = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.gate = enn.Gate(
            f"{width}x0e", [torch.nn.functional.silu], f"{vectors}x0e", [torch.sigmoid], f"{vectors}x1o"
        )
        for _ in range(depth):
            product = _depthwise(o3, hidden, sphere)
            self.products.append(product)
            self.weights.append(nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, product.weight_numel)))
            self.mixes.append(o3.Linear(product.irreps_out, gates))
        self.atom_out = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, kinds + charges))
        self.pair_out = nn.Sequential(nn.Linear(2 * width + self.radial.size + 32, 64), nn.SiLU(), nn.Linear(64, bonds))
        self.push = nn.Linear(vectors, 1, bias=False)

    def forward(
        self, x: dict[str, Tensor], t: Tensor, *, mask: Tensor | None = None, previous: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        pos = x["pos"]
        b, n, _ = pos.shape
        real = pos.new_ones(b, n, 1) if mask is None else mask.unsqueeze(-1).to(pos.dtype)
        both = (real * real.transpose(1, 2)).unsqueeze(-1) * (1 - torch.eye(n)).unsqueeze(-1)
        bond = pairs_of_edges(hot(x["bond"], self.bonds, pos), n)
        r = pos.unsqueeze(1) - pos.unsqueeze(2)
        shown = torch.cat([self.radial(r.square().sum(-1)), bond], -1)
        old_atom, old_pair = pos.new_zeros(b, n, self.kinds + self.charges + self.bonds), torch.zeros_like(shown)
        if previous is not None:
            old_bond = pairs_of_edges(previous["bond"].softmax(-1), n)
            d = previous["pos"].unsqueeze(1) - previous["pos"].unsqueeze(2)
            old_atom = torch.cat(
                [previous["kind"].softmax(-1), previous["charge"].softmax(-1), (old_bond * both).sum(2)], -1
            )
            old_pair = torch.cat([self.radial(d.square().sum(-1)), old_bond], -1)
        atom = [hot(x["kind"], self.kinds, pos), hot(x["charge"], self.charges, pos), (bond * both).sum(2), old_atom]
        size, time_ = (real.sum(1, keepdim=True) / 16 - 1).expand(-1, n, -1), time_features(t, pos).unsqueeze(1)
        h = self.first(torch.cat([*atom, time_.expand(-1, n, -1), size], -1))
        e = self.pair_in(torch.cat([shown, old_pair], -1))
        sphere = self.o3.spherical_harmonics([0, 1], r, normalize=True, normalization="component")
        h = torch.cat([h, h.new_zeros(b, n, 3 * self.vectors)], -1)
        for product, weight, mix in zip(self.products, self.weights, self.mixes, strict=True):
            message = product(h.unsqueeze(1).expand(-1, n, -1, -1), sphere, weight(e))
            h = h + self.gate(mix((message * both).sum(2) / 4)) * real
        scalars, arrows = h[..., : self.width], h[..., self.width :].unflatten(-1, (self.vectors, 3))
        pace = ((1 - t).square() + 0.01).sqrt().reshape(-1, 1, 1)
        step = self.push(arrows.transpose(-1, -2)).squeeze(-1)  # e3nn's vectors are (x, y, z)
        where = (pos + pace * step) * real
        where = (where - where.sum(1, keepdim=True) / real.sum(1, keepdim=True)) * real
        made = self.atom_out(scalars)
        one, other = scalars.unsqueeze(1), scalars.unsqueeze(2)
        far = self.radial((where.unsqueeze(1) - where.unsqueeze(2)).square().sum(-1))
        pair = torch.cat([one + other, one * other, far, e], -1)
        return {
            "pos": where,
            "kind": made[..., : self.kinds],
            "charge": made[..., self.kinds :],
            "bond": self.pair_out(edges_of_pairs(pair)),
        }


def _depthwise(o3, hidden, sphere):  # type: ignore[no-untyped-def]
    """A product channel by channel, as in NequIP, with one weight a channel and pair."""
    out, how = [], []
    for i, (count, one) in enumerate(hidden):
        for j, (_, other) in enumerate(sphere):
            for made in one * other:
                if str(made) in ("0e", "1o"):
                    how.append((i, j, len(out), "uvu", True))
                    out.append((count, made))
    return o3.TensorProduct(hidden, sphere, o3.Irreps(out), how, shared_weights=False, internal_weights=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the processor, for each network")
    parser.add_argument("--edges", type=int, default=2500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, val = (three_d.tensors_of(p) for p in three_d.split_molecules(load_conformers(args.data)))
    sizes = (len(three_d.ELEMENTS), len(three_d.CHARGES), len(three_d.ORDERS))
    made = {}
    for name, kind in (("ours", MoleculeNetwork), ("e3nn", E3nnNetwork)):
        torch.manual_seed(0)
        flow = three_d.build(three_d.ThreeDConfig(**train.shares()))
        torch.manual_seed(0)
        flow.model = kind(*sizes)
        made[name] = [flow, torch.optim.Adam(flow.parameters(), 1e-3), 0.0, 0, 0]
    source = three_d.sized_batches(train, args.edges, 0)(0)
    while min(m[2] for m in made.values()) < args.seconds:
        batch = next(source)
        for entry in made.values():
            flow, optimizer = entry[0], entry[1]
            if entry[2] >= args.seconds:
                continue
            drawn = flow.draw(batch["x"], mask=batch["mask"])
            began = time.process_time()
            loss = sum(flow.loss_of(drawn).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimizer.step()
            entry[2] += time.process_time() - began
            entry[3] += 1
            entry[4] += len(batch["mask"])
    batch = val.batch(torch.arange(len(val)))
    t = (torch.arange(len(val)) + 0.5) / len(val)
    for name, (flow, _, seconds, steps, seen) in made.items():
        with torch.no_grad():
            parts = flow.loss_parts(batch["x"], mask=batch["mask"], t=t, generator=torch.Generator().manual_seed(0))
        told = ", ".join(f"{n} {float(v):.3f}" for n, v in parts.items())
        count = sum(p.numel() for p in flow.model.parameters())
        print(
            f"{name}: {count:,} parameters, {1e3 * seconds / seen:.2f} ms a molecule and step, {steps} steps in {seconds:.0f} s, "
            f"held-back loss {float(sum(parts.values())):.3f} ({told})"
        )


if __name__ == "__main__":
    main()
