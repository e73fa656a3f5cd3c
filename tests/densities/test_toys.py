"""The swiss roll on the simplex and the modes on the rotation group: their laws, and what is said of the published density."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.sampling.likelihood import divergence
from manifoldflow.tasks.densities import so3_toy, swissroll


def test_the_law_of_the_swiss_roll_integrates_to_one_and_its_draws_have_its_entropy() -> None:
    grid, area = swissroll.simplex_grid(120)
    density = torch.stack([torch.tensor(-swissroll.true_nll(point[None])).exp() for point in grid[::7]])
    assert float(density.mean()) * area * len(grid) == pytest.approx(1, abs=0.02)
    # Training points and fresh ones are draws of one law: equal up to three standard errors.
    old, new = swissroll.true_nll(swissroll.swiss_roll()), swissroll.true_nll(swissroll.swiss_roll(held_out=True))
    assert old == pytest.approx(new, abs=0.1) and old == pytest.approx(-1.92, abs=0.05)


def test_the_grid_of_the_simplex_has_its_area_and_its_mean() -> None:
    grid, area = swissroll.simplex_grid(10)
    assert len(grid) * area == pytest.approx(0.5)
    assert bool((grid > 0).all()) and torch.allclose(grid.mean(0), torch.full((3,), 1 / 3))


@pytest.mark.parametrize("kind", swissroll.KINDS)
def test_an_untrained_model_that_stands_still_has_the_density_of_its_source(kind: Any) -> None:
    flow = swissroll.build(kind)
    for p in flow.parameters():
        torch.nn.init.zeros_(p)
    points = swissroll.swiss_roll()[:20]
    found = swissroll.log_density(flow, points, steps=4)
    assert torch.allclose(found, torch.full_like(found, math.log(2)), atol=1e-5)  # Dirichlet(1): 2 in dp_1 dp_2
    assert bool(swissroll.is_inside(flow, points, steps=4).all())


def test_the_published_trace_is_off_by_twice_the_radial_part_that_no_loss_sees() -> None:
    """Trace of the ambient Jacobian of f - <z, f> z against the divergence on the sphere."""
    torch.manual_seed(0)
    flow = swissroll.build("fisher_rao").double()
    net: Any = flow.model
    x = swissroll.swiss_roll()[:6].double()
    t = torch.tensor(0.7, dtype=torch.float64)

    def ambient(z: Tensor) -> Tensor:
        f = 0.5 * net.raw((z * z).unsqueeze(0), t).squeeze(0)
        return f - (z * f).sum() * z

    z = x.sqrt()
    trace = torch.stack([torch.trace(torch.func.jacrev(ambient)(v)) for v in z])
    right = divergence(flow.velocity, flow.spaces, x, t)[1]
    radial = (z * 0.5 * net.raw(x, t)).sum(-1)
    assert torch.allclose(trace - right, -2 * radial, atol=1e-10)
    assert float(radial.detach().abs().max()) > 1e-3


def test_a_radial_part_lowers_the_published_nll_at_will_and_changes_nothing_else() -> None:
    class Radial(swissroll.SimplexNet):
        size = 0.0

        def raw(self, x: Tensor, t: Tensor) -> Tensor:
            return super().raw(x, t) + 2 * self.size * x.sqrt()

    torch.manual_seed(0)
    net = Radial("fisher_rao")
    flow = mf.Flow(mf.Simplex(3), net, source=swissroll.FlatDirichlet())
    x = swissroll.swiss_roll()[:10]
    found = []
    for size in (0.0, 1.5):
        net.size = size
        loss = float(flow.loss(x, generator=torch.Generator().manual_seed(0)).detach())
        exact = swissroll.log_density(flow, x, steps=20)
        found.append((loss, exact, swissroll.authors_extra(flow, x, steps=20)))
    (loss, exact, extra), (same_loss, same_exact, more) = found
    assert same_loss == pytest.approx(loss, rel=1e-4)
    assert torch.allclose(exact, same_exact, atol=1e-3)
    assert torch.allclose(more - extra, torch.full_like(extra, 3.0), atol=1e-3)


@pytest.mark.parametrize(("kind", "count"), [("cube", 27), ("spread", 8)])
def test_the_rotation_set_has_separate_modes_of_equal_weight(kind: str, count: int) -> None:
    space = mf.UnitQuaternion()
    centres = so3_toy.modes(kind)
    apart = space.dist(centres.unsqueeze(1), centres.unsqueeze(0)) + 9 * torch.eye(count)
    assert float(apart.min()) > 6 * so3_toy.SCALE
    draws = so3_toy.exact(60 * count, kind, generator=torch.Generator().manual_seed(0), stratified=True)
    near = space.dist(draws.unsqueeze(1), centres.unsqueeze(0))
    counts = near.argmin(-1).bincount(minlength=count)
    assert int((counts - 60).abs().max()) <= 2  # those of the cube touch at three deviations
    # Mean squared angle of IGSO(3) of a small scale: 3 s^2.
    assert float(near.amin(-1).square().mean()) == pytest.approx(3 * so3_toy.SCALE**2, rel=0.06)


def test_the_ratios_are_given_for_even_steps_and_for_the_best_grid_of_the_base() -> None:
    def w(value: float) -> dict[str, float]:
        return {"W1": value, "W2": value}

    row = {"floor": w(1.0), "base@100": w(1.2), "reflow@100": w(1.1), "base@4": w(4.0)}
    found = so3_toy.verdicts(row | {"base@4 mid": w(3.0), "base@4 late": w(5.0), "reflow@4": w(1.5)})
    assert found["base@4/reflow@4 W2"] == pytest.approx(4 / 1.5)
    assert found["base@4 on its best grid/reflow@4 W2"] == pytest.approx(2.0)
    assert found["base@100 W1/floor"] == pytest.approx(1.2)
