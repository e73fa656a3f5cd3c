"""Rewards against RDKit and by hand; budgets that are honest and survive a kill; rewards that are none."""

import time
from pathlib import Path

import pytest
import torch
from rdkit import Chem, DataStructs
from rdkit.Chem import QED, Crippen, rdFingerprintGenerator

import manifoldflow as mf
from manifoldflow.checkpoint import read_metadata, save
from manifoldflow.tasks.molecules.metrics import (
    bootstrap_spearman,
    calls_to,
    hypervolume,
    modes,
    pareto_front,
    set_scores,
    top_mean,
)
from manifoldflow.tasks.molecules.oracle import Oracle
from manifoldflow.tasks.molecules.proxy import TanimotoRidge, fingerprints, scaffold_folds, tanimoto
from manifoldflow.tasks.molecules.rewards import Objective, outside

SMILES = ["CCO", "c1ccccc1O", "CC(=O)Nc1ccc(O)cc1", "C1CCNCC1", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", "CCN(CC)CC"]


def test_terms_are_those_of_rdkit_and_multiply() -> None:
    from rdkit.Contrib.SA_Score import sascorer

    mols = [Chem.MolFromSmiles(s) for s in SMILES]
    made = Objective("qed*sa^2*logp[0,1]").function()(SMILES)
    for m, value in zip(mols, made, strict=True):
        lipo = Crippen.MolLogP(m)
        away = max(0 - lipo, lipo - 1, 0)
        want = QED.qed(m) * ((10 - sascorer.calculateScore(m)) / 9) ** 2 * 2.718281828459045 ** (-0.5 * away**2)
        assert value == pytest.approx(want)
    assert Objective("similarity", lead="CCO").function()(["CCO", "OCC", "CCN"])[:2] == [1.0, 1.0]
    assert outside(5.0, (1.0, 3.0), 2.0) == pytest.approx(2.718281828459045**-0.5)


@pytest.mark.parametrize(
    "text, told",
    [
        ("qed*sa2", "no term is called 'sa2'; there are"),
        ("logp", r"logp is not between 0 and 1; give a window, such as logp\[1,4\]"),
        ("logp[4,1]", "lower end is above"),
        ("qed**sa", r"something is missing beside a '\*'"),
        ("qed^x", "with numbers"),
        ("qed^", "with numbers"),
        ("qed^-1", "a power is a positive number, got -1"),
        ("qed^nan", "a power is a positive number"),
        ("  ", "the reward is empty"),
        ("QED", r"did you mean 'qed'\?"),
        ("qed+sa", r"terms are multiplied"),
        ("2*qed", r"terms are multiplied"),
        ("nowhere.py:score", "there is no file nowhere.py"),
        ("math:nothing", "math has no function 'nothing'"),
        ("no_such_module:f", "cannot be imported"),
    ],
)
def test_what_is_no_reward_says_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Objective(text)
    with pytest.raises(ValueError, match="needs a lead"):
        Objective("similarity")


def test_a_function_of_ones_own_and_several_objectives(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(smiles):\n    return [len(s) / 100 for s in smiles]\n")
    made = Objective(f"{tmp_path}/mine.py:score*qed,sa")
    assert len(made) == 2 and made.names[1] == "sa"
    assert made.function(0)(["CCO"]) == [pytest.approx(0.03 * QED.qed(Chem.MolFromSmiles("CCO")))]
    oracle = Oracle(made, 2)
    value = oracle.ask(["CCO", "CCN", "CCC", "CCO"])
    assert oracle.used == 2 and value.shape == (4, 2)
    assert value.isnan().any(-1).tolist() == [False, False, True, False]


def test_a_cached_answer_is_free_and_a_killed_run_loses_no_call(tmp_path: Path) -> None:
    asked: list[str] = []

    def score(smiles: list[str]) -> list[float]:
        asked.extend(smiles)
        return [0.5] * len(smiles)

    objective = Objective("qed")
    first = Oracle(objective, 5, tmp_path, functions=[score])
    first.ask(["C", "CC", "C"])
    first.ask(["CC", "CCC"])
    assert asked == ["C", "CC", "CCC"] and (first.used, first.left) == (3, 2)
    with (tmp_path / "calls.jsonl").open("a") as file:
        file.write('{"key": "CCCC", "rew')  # killed while it was writing
    again = Oracle(objective, 5, tmp_path, functions=[score])
    assert (again.used, again.left) == (3, 2) and again.answers().smiles == ["C", "CC", "CCC"]
    again.ask(["C", "CC", "CCC", "CCCC"])
    assert asked[3:] == ["CCCC"] and again.left == 1
    with pytest.raises(ValueError, match="holds answers for the reward qed, not sa"):
        Oracle(Objective("sa"), 5, tmp_path)


def bad(kind: str, smiles: list[str]) -> list[float]:
    made = [0.5 if s != "CC" else {"nan": float("nan"), "negative": -1.0}.get(kind, 0.5) for s in smiles]
    if kind == "raises" and "CC" in smiles:
        raise RuntimeError("no licence")
    if kind == "hangs" and "CC" in smiles:
        time.sleep(5)
    return made[:-1] if kind == "length" and "CC" in smiles else made


@pytest.mark.parametrize("kind, told", [("nan", "is nan"), ("negative", "is -1.0"), ("raises", "no licence"),
                                        ("length", "shape"), ("hangs", "did not come within 0.3 s")])  # fmt: skip
def test_rewards_that_are_none_name_the_molecule_or_count_as_the_least(kind: str, told: str, tmp_path: Path) -> None:
    names = ["C", "CC", "CCC"]
    strict = Oracle(Objective("qed"), 50, tmp_path, functions=[lambda s: bad(kind, s)], timeout=0.3, batch=1)
    with pytest.raises(ValueError, match=f"'CC'.*{told}"):
        strict.ask(names)
    assert strict.knows("C")  # what was answered before is kept
    lenient = Oracle(Objective("qed"), 50, functions=[lambda s: bad(kind, s)], timeout=0.3, bad="floor")
    value = lenient.ask(names)[:, 0]
    assert value[0] == value[2] == 0.5 and value[1] < 1e-6 and lenient.failed == 1


def test_likeness_is_that_of_rdkit() -> None:
    maker = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    prints = [maker.GetFingerprint(Chem.MolFromSmiles(s)) for s in SMILES]
    want = torch.tensor([DataStructs.BulkTanimotoSimilarity(p, prints) for p in prints])
    ours = fingerprints(SMILES)
    assert torch.allclose(tanimoto(ours, ours), want.float(), atol=1e-6)


def test_the_proxy_is_kernel_ridge_on_counts_and_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    value = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    model = TanimotoRidge.fitted(SMILES, value, ridge=1e-4, low=0.0, high=10.0)
    assert torch.allclose(model(SMILES), value, atol=1e-2)  # it remembers what it learned from
    kernel = model.kernel(SMILES)
    counts = fingerprints(SMILES, "pairs", counts=True)
    pair = torch.minimum(counts[0], counts[2]).sum() / torch.maximum(counts[0], counts[2]).sum()
    others = [fingerprints(SMILES, k, counts=True) for k in ("morgan2", "morgan3", "features2", "torsions")]
    rest = sum(torch.minimum(c[0], c[2]).sum() / torch.maximum(c[0], c[2]).sum().clamp_min(1) for c in others)
    assert float(kernel[0, 2]) == pytest.approx(float((pair + rest) / 5), abs=1e-6)
    assert torch.allclose(kernel.diagonal()[1:], torch.ones(5), atol=1e-6)  # ethanol has no chain of four
    file = save(model, tmp_path / "proxy.safetensors")
    assert torch.allclose(mf.load(file)(SMILES), model(SMILES), atol=1e-5)


def test_the_embedded_proxy_was_judged_on_scaffolds_it_had_not_seen() -> None:
    said = read_metadata("molecules_seh")["training"]["scaffold_split"]
    assert said["r2"] > 0.638 and said["spearman"] > 0.805
    proxy = mf.load("molecules_seh")
    urea, small = "O=C(NC1CCCCC1)NC12CC3CC(CC(C3)C1)C2", "CCO"  # an adamantyl urea is a nanomolar inhibitor of sEH
    values = proxy([urea, small])
    assert float(values[0]) > 7.5 > float(values[1])
    folds = scaffold_folds(["c1ccccc1", "Cc1ccccc1", "C1CCNCC1", "CC1CCNCC1", "CCO"], 2)
    assert sorted(n for fold in folds for n in fold) == [0, 1, 2, 3, 4]
    assert any({0, 1} <= set(fold) for fold in folds) and any({2, 3} <= set(fold) for fold in folds)


def test_numbers_of_sets_by_hand() -> None:
    reward = torch.tensor([0.9, 0.8, 0.7, 0.1])
    assert modes(["CCCCO", "CCCCO", "c1ccccc1", "CCO"], reward, 0.5) == [0, 2]
    values = torch.arange(1.0, 201.0) / 200
    assert top_mean(values, 100) == pytest.approx(float(values[100:].mean()))
    at = calls_to(values, 0.9, 100)
    assert top_mean(values[:at], 100) >= 0.9 * top_mean(values) > top_mean(values[: at - 1], 100)
    assert calls_to(values[:50], 0.9, 100) == 51
    front = torch.tensor([[1.0, 0.2], [0.5, 0.5], [0.4, 0.4], [0.2, 1.0]])
    assert pareto_front(front).tolist() == [True, True, False, True]
    assert hypervolume(front) == pytest.approx(1.0 * 0.2 + 0.5 * 0.3 + 0.2 * 0.5)
    scores = set_scores(["CCO", "OCC", "c1ccccc1", "O=C(Cl)CCBr"], reference=["CCO"])
    assert (scores.count, scores.valid, scores.unique, scores.novel, scores.alerts) == (4, 4, 3, 2, 1)
    whole, low, high = bootstrap_spearman(torch.arange(50.0), torch.arange(50.0) ** 3)
    assert (whole, low, high) == pytest.approx((1.0, 1.0, 1.0))
