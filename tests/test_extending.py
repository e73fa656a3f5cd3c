"""docs/extending.md is true: its files, written into an empty folder, work with a library in which nothing was touched."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import manifoldflow as mf
from testkit.shared import ROOT

PAGE = ROOT / "docs" / "extending.md"
FILE = re.compile(r"^```python\n# (pots/\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page, installed as a package would be."""
    folder = tmp_path_factory.mktemp("pots")
    files = dict(FILE.findall(PAGE.read_text(encoding="utf-8")))
    assert set(files) == {f"pots/{n}.py" for n in ("positive", "chord", "glaze", "task", "serving")}
    (folder / "pots").mkdir()
    (folder / "pots" / "__init__.py").touch()
    for name, text in files.items():
        (folder / name).write_text(text)
    facts = folder / "pots-0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: pots\nVersion: 0.1\n")
    (facts / "entry_points.txt").write_text("[manifoldflow.tasks]\npots = pots.task\n")
    return folder


def run(folder: Path, *words: str) -> str:
    env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_own_manifold_path_and_kernel_go_through_everything(folder: Path) -> None:
    code = """
        import torch
        import manifoldflow as mf
        from manifoldflow.testing import check_manifold, check_path
        from pots.chord import Chord
        from pots.glaze import Glaze
        from pots.positive import Positive

        space = Positive(2)
        check_path(Chord(), space)
        flow = mf.Flow(space, mf.nn.TangentMLP(space, width=16, depth=2), source=mf.WrappedNormal(scale=0.5), path=Chord(),
                       coupling=mf.MinibatchOT()).double()
        generator = torch.Generator().manual_seed(0)
        data = torch.exp(0.3 * torch.randn(64, 2, dtype=torch.float64))
        optimizer = torch.optim.Adam(flow.parameters(), 3e-3)
        losses = []
        for _ in range(60):
            loss = flow.loss(data, generator=generator)
            optimizer.zero_grad(); loss.backward(); optimizer.step(); losses.append(float(loss.detach()))
        assert sum(losses[-10:]) < sum(losses[:10])
        made = flow.sample(50, steps=8, generator=generator)
        assert (made > 0).all()
        path = flow.sample(x0=flow.draw_source((6,), generator=generator),
                           steps=60, method="rk4", log_prob=True)
        ours = flow.source["x"].log_prob(path.at(0)) + path.log_prob.sum(0)
        assert (ours - flow.log_prob(path.end, steps=60, trace_every=1)).abs().max() < 1e-4
        try:
            flow.sample(3, method=mf.SDE())
        except TypeError as error:
            assert "no score" in str(error)
        noisy = mf.Flow(space, mf.nn.TangentMLP(space, width=16, depth=2, heads=2), source=mf.WrappedNormal(scale=0.5),
                        path=mf.StochasticInterpolant(mf.BumpNoise(0.1)))
        assert noisy.loss(data.float()).isfinite() and (noisy.sample(5, method=mf.SDE(0.5), steps=5) > 0).all()
        walk = mf.simulate(Glaze(0.5), made, [0.0, 0.5, 1.0], log_prob=True, generator=generator)
        other = mf.trajectory_log_prob(mf.RandomWalk(space, 0.5), walk)
        assert (walk.log_prob.sum(0) - other).abs().max() < 1e-9
        print("fine")
    """
    assert run(folder, "-c", textwrap.dedent(code)).endswith("fine\n")


@pytest.mark.slow
def test_an_own_task_has_a_command_line_and_checkpoints(folder: Path) -> None:
    out = folder / "run"
    run(folder, "-m", "manifoldflow", "train", "pots", "--steps", "20", "--out", str(out), "--width", "8")
    rows = run(folder, "-m", "manifoldflow", "sample", "pots", "--checkpoint", str(out), "--num", "3").splitlines()
    assert len(rows) == 3 and all(float(v) > 0 for row in rows for v in row.split())
    assert "of pots" in run(folder, "-m", "manifoldflow", "train", "pots", "--help")
    code = "import manifoldflow as mf, sys; print(mf.load(sys.argv[1]).config)"
    assert run(folder, "-c", code, str(out / "model.safetensors")) == "{'width': 8}\n"


def test_an_own_job_is_served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.syspath_prepend(str(folder))
    from pots.serving import PotService
    from pots.task import build

    from testkit.serving import in_process

    torch.manual_seed(0)
    file = mf.save(build({"width": 8}), folder / "served.safetensors")

    async def body(client, held):
        answer = await client.post("/v1/pots", json={"n": 2, "seed": 3})
        assert answer.status_code == 200, answer.text
        widths = answer.json()["widths"]
        assert len(widths) == 2 and all(v > 0 for row in widths for v in row)
        assert (await client.post("/v1/pots", json={"n": 2, "seed": 3})).json()["widths"] == widths
        assert (await client.post("/v1/pots", json={"n": 1000})).status_code == 422

    in_process(PotService(), {"pots": file}, body)
