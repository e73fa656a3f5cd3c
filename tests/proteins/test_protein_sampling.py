"""The sampler of backbones: two passes, the settings' meaning, and the laws that they keep."""

import json
from pathlib import Path

import pytest
import torch

import manifoldflow as mf
from manifoldflow import cli
from manifoldflow.tasks.proteins import protocol
from manifoldflow.tasks.proteins.flow import ProteinConfig, build
from manifoldflow.tasks.proteins.model import NetworkConfig
from manifoldflow.tasks.proteins.sampling import DEFAULT_STEPS, Sampling, sample_frames
from manifoldflow.tasks.proteins.sequences import is_installed
from manifoldflow.tasks.proteins.write import write_pdb
from testkit.peptide import HELIX, peptide


def flow(rotations: str = "so3") -> mf.Flow:
    torch.manual_seed(0)
    network = NetworkConfig(width=16, depth=1, heads=2, points=2, hidden=16, pair_hidden=4)
    return build(ProteinConfig(network=network, rotations=rotations))  # type: ignore[arg-type]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("rotations", ["so3", "quaternion"])
def test_one_pass_with_the_old_settings_is_the_plain_sampler(rotations: str) -> None:
    f = flow(rotations)
    settings = Sampling(steps=7, noise=10.0, power=1.0, again=1.0)
    x, mask = sample_frames(f, [5, 8], settings, generator=seeded())
    plain, same = f.sample(lengths=[5, 8], steps=7, generator=seeded())
    assert torch.equal(mask, same)
    assert all(torch.allclose(x[k], plain[k], atol=1e-5) for k in x)


@pytest.mark.parametrize("rotations", ["so3", "quaternion"])
def test_both_passes_are_counted_and_kept(rotations: str) -> None:
    f, seen = flow(rotations), []
    settings = Sampling(steps=4, again_steps=3)
    x, _ = sample_frames(
        f, [6], settings, generator=seeded(), trajectory=True, callback=lambda step, state: seen.append(step)
    )
    assert seen == list(range(1, 8)) and settings.calls == 7
    assert len(x["trans"]) == 5 + 4  # the states of both, ends included
    last, _ = sample_frames(f, [6], settings, generator=seeded())
    assert all(torch.equal(x[k][-1], last[k]) for k in last)


def test_the_second_pass_starts_on_the_training_path() -> None:
    """At t the positions are (1 - t) noise + t sample: the spread about t times the sample is that of the noise."""
    f, t = flow(), 0.6
    x, _ = sample_frames(
        f, [64] * 40, Sampling(steps=3, again=t, again_steps=1, again_noise=10.0), generator=seeded(), trajectory=True
    )
    first, start = x["trans"][3], x["trans"][4]
    rest = start - t * first
    assert rest.std() == pytest.approx((1 - t) * 10.0, rel=0.03)
    assert rest.mean().abs() < 0.05
    k = mf.Exponential(10.0).k(torch.tensor(t))
    assert mf.SO3().dist(x["rots"][4], x["rots"][3]).max() < float(1 - k) * 3.15


def test_a_motif_stays_in_both_passes() -> None:
    f = flow()
    known = {"trans": torch.randn(1, 4, 3), "rots": mf.Uniform(mf.SO3()).sample((1, 4))}
    pinned = torch.ones(1, 4, dtype=torch.bool)
    x, _ = sample_frames(
        f, [9, 9], Sampling(steps=3, again_steps=3), known=known, known_mask=pinned, generator=seeded()
    )
    assert all(torch.allclose(x[k][:, :4], known[k].expand(2, *known[k].shape[1:]), atol=1e-6) for k in x)


def test_steps_are_shared_by_the_passes() -> None:
    assert Sampling.of(DEFAULT_STEPS) == Sampling()
    for steps in range(1, 40):
        assert Sampling.of(steps).calls == steps
        assert Sampling.of(steps, again=1.0).calls == steps
    assert Sampling.of(5).again == 1 and Sampling.of(6).again < 1


@pytest.mark.parametrize("bad", [{"steps": 0}, {"noise": 0.0}, {"power": 0.0}, {"again": 1.5}, {"again_noise": -1.0}])
def test_settings_that_mean_nothing_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)  # type: ignore[arg-type]


def test_the_protocol_of_the_readme_runs_and_keeps_its_rows(tmp_path: Path) -> None:
    for i, n in enumerate((50, 60)):
        write_pdb(torch.from_numpy(peptide([HELIX] * n)).float(), None, tmp_path / "in" / f"c{i}.pdb")
    assert cli.main(["prepare", "proteins", "--inputs", str(tmp_path / "in"), "--out", str(tmp_path / "set")]) == 0
    out = tmp_path / "table.json"
    options = ["--num", "2", "--steps", "6", "--out", str(out)]
    if is_installed():
        options += ["--sequences", "1"]
    protocol.main(["--data", str(tmp_path / "set"), *options])
    rows = json.loads(out.read_text())
    assert list(rows) == ["proteins 6 raw", "proteins 6 relaxed"]
    assert rows["proteins 6 relaxed"]["c_n_within"] > rows["proteins 6 raw"]["c_n_within"]
    assert ("sequence_nll" in rows["proteins 6 relaxed"]) == is_installed()
