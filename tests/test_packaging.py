"""The wheel holds what a user needs and works far from the checkout."""

import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

import manifoldflow

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def installed(name: str) -> bool:
    """Whether a distribution is installed, from its metadata: looking for the module ``pip`` through the import system
    makes setuptools switch off its distutils for the whole process, and torch.compile then fails in later tests."""
    return bool(list(distributions(name=name)))


needs_hatchling = pytest.mark.skipif(
    not (installed("hatchling") and installed("pip")), reason="the build backend hatchling, or pip, is not installed"
)


def pip(*words: str) -> None:
    """Run pip without the network."""
    command = [sys.executable, "-m", "pip", *words, "--no-deps", "--no-index", "--disable-pip-version-check", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def outside(site: Path, *words: str) -> str:
    """Run Python in a folder that is no checkout, with the installed wheel before anything else; its output."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *words], cwd=site.parent, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(ROOT), "--no-build-isolation", "-w", str(folder))
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("elsewhere") / "site"
    pip("install", str(wheel), "--target", str(folder))
    yield folder


def test_version_is_the_same_in_metadata_and_module() -> None:
    assert PROJECT["project"]["version"] == manifoldflow.__version__


def test_every_direct_dependency_is_pinned_in_constraints() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = PROJECT["project"]["dependencies"] + [line for lines in extras.values() for line in lines]
    names = {line.split(">=")[0].split("[")[0].lower().replace("_", "-") for line in wanted}
    assert not names - pinned, f"not in constraints.txt: {sorted(names - pinned)}"


@needs_hatchling
def test_wheel_holds_the_packages_their_data_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"manifoldflow/py.typed", "manifoldflow/cli.py", "manifoldflow/tasks/proteins/__init__.py"} <= names
    for folder in ("checkpoints", "reference"):
        here = {f"manifoldflow/data/{folder}/{p.name}" for p in (ROOT / "data" / folder).iterdir() if p.is_file()}
        assert here and here <= names
    kinds = ("*.py", "*.html", "*.css", "*.js")
    sources = {str(p.relative_to(ROOT)) for kind in kinds for p in (ROOT / "manifoldflow").rglob(kind)}
    sources |= {f"manifoldflow/{p.relative_to(ROOT)}" for kind in kinds for p in (ROOT / "tasks").rglob(kind)}
    assert sources <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


@needs_hatchling
def test_installed_wheel_imports_outside_the_checkout(site: Path) -> None:
    where, version = outside(site, "-c", "import manifoldflow as m; print(m.__file__); print(m.__version__)").split()
    assert Path(where).is_relative_to(site)
    assert version == manifoldflow.__version__


@needs_hatchling
def test_installed_command_line_finds_the_task_outside_the_checkout(site: Path) -> None:
    text = outside(site, "-m", "manifoldflow.cli", "--help")
    assert "usage: manifoldflow VERB TASK" in text
    assert "tasks: densities, dna, proteins" in text


@needs_hatchling
def test_installed_wheel_loads_every_embedded_checkpoint(site: Path) -> None:
    ours = sorted(p.stem for p in (ROOT / "data" / "checkpoints").glob("*.safetensors"))
    if not ours:
        pytest.skip("no checkpoint is embedded yet")
    code = "import sys, manifoldflow as mf; [mf.load(name) for name in sys.argv[1:]]"
    outside(site, "-c", code, *ours)
