"""How long does it take to corrupt a batch of 16 x 128 residue frames, IGSO(3) noise included, beside FrameFlow's figure?

FrameFlow is not on the package index, so its time is quoted as a multiple of a yardstick that is timed again here. From
PEERS.md, section 2 (wall time, 2 threads, quiet machine): plain closed form 0.36 ms (uniform noise, normal positions, linear
interpolation, slerp), FrameFlow's corrupt_batch 6.47 ms = 18 times plain, ReQFlow's 8.62 ms = 24 times.
``FrameFlow (18 x plain, quoted)`` below is 18 times the plain line of this run. Target: ours at least 10 times faster.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from benchmarks._bench import OURS, Report, Row, compare, run

B, N = 16, 128
FRAMEFLOW_OVER_PLAIN = 6.47 / 0.36


def plain(trans: Tensor, quats: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """The yardstick: uniform quaternions, normal positions, straight line and slerp in small closed forms."""
    t = torch.rand(B, 1, 1, generator=g)
    noise = 10 * torch.randn(B, N, 3, generator=g)
    q0 = torch.nn.functional.normalize(torch.randn(B, N, 4, generator=g), dim=-1)
    dot = (q0 * quats).sum(-1, keepdim=True)
    q1 = torch.where(dot < 0, -quats, quats)
    angle = dot.abs().clamp(max=1 - 1e-6).acos()
    q = (torch.sin((1 - t) * angle) * q0 + torch.sin(t * angle) * q1) / torch.sin(angle)
    return (1 - t) * noise + t * trans, q


def body(report: Report, budget: float) -> None:
    g = torch.Generator().manual_seed(0)
    trans = torch.randn(B, N, 3, generator=g)
    flat, normal = mf.Euclidean(3), mf.Normal(10.0, mf.Euclidean(3))
    rotations = {"quaternions": mf.UnitQuaternion(), "matrices": mf.SO3()}
    quats = mf.UnitQuaternion().sample_uniform((B, N), generator=g)
    for name, space in rotations.items():
        data = space.sample_uniform((B, N), generator=g)
        for noise_name, noise in (
            ("IGSO(3) noise", mf.IGSO3(1.5, manifold=space)),
            ("uniform noise", mf.Uniform(space)),
        ):
            quick = torch.compile(space.interpolate, dynamic=False)
            for mode, interpolate in (("eager", space.interpolate), ("interpolation compiled", quick)):

                def ours(
                    noise: mf.IGSO3 | mf.Uniform = noise, interpolate: Any = interpolate, data: Tensor = data
                ) -> tuple[Tensor, Tensor]:
                    t = torch.rand(B, generator=g)
                    trans_t = flat.interpolate(normal.sample((B, N), generator=g), trans, t)
                    return trans_t, interpolate(noise.sample((B, N), generator=g), data, t)

                add(report, f"{name}, {noise_name}, {mode}", ours, lambda: plain(trans, quats, g), budget)


def add(report: Report, case: str, ours: Callable[[], Any], yardstick: Callable[[], Any], budget: float) -> None:
    """Time ours and the yardstick, and put FrameFlow's multiple of it beside them."""
    measured = compare("", {OURS: ours, "plain": yardstick}, budget=budget)
    ratio = FRAMEFLOW_OVER_PLAIN * measured.ratio
    quoted = "FrameFlow (18 x plain, quoted)"
    report.add(
        Row(
            f"corrupt {B} x {N} frames, {case}",
            measured.seconds | {quoted: FRAMEFLOW_OVER_PLAIN * measured.seconds["plain"]},
            measured.least | {quoted: FRAMEFLOW_OVER_PLAIN * measured.least["plain"]},
            {},
            ratio,
            ">= 10.00",
            ratio >= 10,
        )
    )


if __name__ == "__main__":
    run(__doc__.splitlines()[0], body)
