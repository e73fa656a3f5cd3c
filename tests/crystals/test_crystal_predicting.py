"""Structures of given compositions from a flow: as many as asked for, of the atoms asked for, from the seed alone."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("spglib")

import manifoldflow as mf
from manifoldflow.checkpoint import save
from manifoldflow.tasks.crystals import predicting
from manifoldflow.tasks.crystals.flow import CrystalConfig, build
from manifoldflow.tasks.crystals.model import NetworkConfig
from manifoldflow.tasks.crystals.structure import parse_formula

CELLS = [[s for s, n in parse_formula(formula) for _ in range(n)] for formula in ("SrTiO3", "NaCl", "Na2Cl2")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flow: mf.Flow = build(CrystalConfig(network=NetworkConfig(width=16, layers=1)))
    return save(flow, tmp_path_factory.mktemp("flow") / "tiny.safetensors")


def test_every_cell_gets_its_structures_from_the_seed_alone(checkpoint: Path) -> None:
    first, again, other = (predicting.predict(checkpoint, CELLS, 2, steps=3, seed=s, progress=False) for s in (0, 0, 1))
    for cell, some in zip(CELLS, first, strict=True):
        assert len(some) == 2
        for crystal in some:
            assert (
                sorted(crystal.species.tolist()) == sorted(cell)
                and np.isfinite(crystal.frac).all()
                and crystal.volume > 0
            )
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a[1].frac, b[1].frac) and not np.allclose(a[1].cell, c[1].cell)
        assert not np.allclose(a[0].cell, a[1].cell)


def test_batches_are_cut_by_pairs_of_atoms_and_lose_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "PAIRS", 10)
    found = predicting.predict(checkpoint, CELLS, 2, steps=1, progress=False)
    assert [[len(c) for c in some] for some in found] == [[5, 5], [2, 2], [4, 4]]


def test_what_cannot_predict_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        predicting.predict(checkpoint, CELLS, steps=0)
    with pytest.raises(ValueError, match="no crystal flow"):
        predicting.predict("proteins", CELLS)
    monkeypatch.setattr(predicting, "known_checkpoints", lambda: ["crystals_perov", "crystals_mp", "dna"])
    assert predicting.default_checkpoint() == "crystals_mp"
    monkeypatch.setattr(predicting, "known_checkpoints", lambda: ["dna"])
    with pytest.raises(FileNotFoundError, match="name one with --checkpoint, or a rule"):
        predicting.default_checkpoint()
