"""The data set: what prepare keeps and reports, atomic folders, items, batches, splits by cluster."""

import csv
import json
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from manifoldflow.tasks.proteins.data import (
    Chain,
    DatasetWriter,
    ProteinDataset,
    TokenBatches,
    collate,
    read_npz,
    split_by_cluster,
    write_dataset,
)
from manifoldflow.tasks.proteins.prepare import prepare
from manifoldflow.tasks.proteins.write import write_cif, write_pdb, write_trajectory
from testkit.shared import SHARED_DATA, needs_shared_data

DATA = SHARED_DATA / "proteins"


def walk(length: int, seed: int = 0) -> torch.Tensor:
    """Atoms of a chain-like walk, ``(length, 4, 3)``: bonded neighbours, sizes like a real backbone's."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.tensor([[0, 0, 0], [1.2, 0.8, 0], [2.5, 0, 0], [2.5, -1.2, 0]]).expand(length, 4, 3)
    noise = 0.05 * torch.randn(length, 4, 3, generator=generator)
    return step + noise + 3.8 * torch.arange(length)[:, None, None] * torch.tensor([1.0, 0, 0])


def chain(name: str, length: int, breaks: tuple[int, ...] = (), seed: int = 0) -> Chain:
    break_after = np.zeros(length, bool)
    break_after[list(breaks)] = True
    rng = np.random.default_rng(seed)
    aatype = rng.integers(0, 20, length).astype(np.int8)
    number, bfactor = np.arange(length, dtype=np.int32), rng.random(length, np.float32)
    return Chain(name, "A", walk(length, seed).numpy(), aatype, number, np.zeros(length, "U1"), break_after, bfactor)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    chains = [chain(f"c{i}", 10 + i, seed=i) for i in range(60)]
    return write_dataset(chains, tmp_path / "set", {f"c{i}": str(i // 4) for i in range(60)})


def test_folder_with_three_bad_files_of_ten_gives_seven_chains_and_three_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    names = [f"good{i}" for i in range(7)]
    write_pdb(torch.stack([walk(60, i) for i in range(7)])[:6], None, raw, names=names[:6])
    write_cif(walk(60, 6), None, raw, names=names[6:])
    (raw / "empty.pdb").write_text("")
    (raw / "cut.cif").write_text((raw / "good6.cif").read_text()[:2000])
    (raw / "dna.pdb").write_text("ATOM      1  P    DA A   1       0.000   0.000   0.000  1.00  0.00           P  \n")
    (raw / "notes.txt").write_text("not a structure, not an input")
    result = prepare([str(raw)], str(tmp_path / "out"))
    assert (result.chains, result.residues) == (7, 420)
    dataset = ProteinDataset(tmp_path / "out")
    assert sorted(dataset.names) == [f"{name}_A" for name in names]
    for i, name in enumerate(dataset.names):
        assert (dataset[i]["coords"] - walk(60, int(name[4]))).abs().max() < 1e-3
    with open(tmp_path / "out" / "rejected.csv", newline="") as file:
        rejected = {Path(row["source"]).name: row["reason"] for row in csv.DictReader(file)}
    assert rejected.keys() == {"empty.pdb", "cut.cif", "dna.pdb"}
    assert rejected["empty.pdb"] == "the file is empty" and "N, CA and C" in rejected["dna.pdb"]
    printed = capsys.readouterr().out
    assert "7 chains, 420 residues from 10 files" in printed and "empty.pdb: the file is empty" in printed


def test_chains_that_do_not_fit_are_rejected_with_the_reason(tmp_path: Path) -> None:
    gap = walk(60)
    gap[30:] += 20
    write_pdb(walk(1), None, tmp_path / "in" / "single.pdb")
    write_pdb(walk(90), None, tmp_path / "in" / "long.pdb")
    write_pdb(gap, None, tmp_path / "in" / "gap.pdb")
    write_pdb(walk(60), None, tmp_path / "in" / "good.pdb")
    write_pdb(walk(60), None, tmp_path / "in" / "copy" / "good.pdb")
    out = str(tmp_path / "out")
    result = prepare([str(tmp_path / "in")], out, max_length=80, max_breaks=0)
    reasons = {name: reason for _, name, reason in result.rejected}
    assert result.chains == 1 and reasons == {
        "single_A": "1 residues, fewer than 50",
        "long_A": "90 residues, more than 80",
        "gap_A": "1 chain breaks, more than 0",
        "good_A": "a chain of this name was read before",
    }
    with pytest.raises(ValueError, match=r"no chain is left of 1 files; the first reason: .*single\.pdb.*1 residues"):
        prepare([str(tmp_path / "in" / "single.pdb")], str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        prepare([str(tmp_path / "gone")], out)
    (tmp_path / "hollow").mkdir()
    with pytest.raises(ValueError, match="hollow: no structure files inside"):
        prepare([str(tmp_path / "hollow")], out)
    assert len(ProteinDataset(out)) == 1  # failed runs left the older data set alone


def test_worker_processes_give_the_same_data_set(tmp_path: Path) -> None:
    write_pdb(torch.stack([walk(50, i) for i in range(4)]), None, tmp_path / "in")
    (tmp_path / "in" / "bad.pdb").write_text("")
    one = prepare([str(tmp_path / "in")], str(tmp_path / "one"))
    two = prepare([str(tmp_path / "in")], str(tmp_path / "two"), workers=2)
    assert one.rejected == two.rejected
    for name in ("coords.npy", "offset.npy", "index.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@needs_shared_data
def test_the_shared_set_with_raw_files_keeps_every_chain_and_its_cluster(tmp_path: Path) -> None:
    result = prepare([str(DATA)], str(tmp_path / "out"), max_length=256)
    assert result.chains == 1752 and result.residues == 102_116 + 81_075 + 249  # npz chains and 1a4w H
    dataset = ProteinDataset(tmp_path / "out")
    truth = {c.name: c for c in read_npz(DATA / "backbones.npz")}
    for i in range(0, 678, 40):
        item = dataset[i]
        assert np.array_equal(item["coords"], truth[item["name"]].coords)
    with open(DATA / "chains.csv", newline="") as file:
        cluster = {row["name"]: row["cluster30"] for row in csv.DictReader(file)}
    train, val = split_by_cluster(dataset, 0.1, seed=1)
    assert len(val) == pytest.approx(175, abs=2) and len(train) + len(val) == 1752
    assert not {cluster[n] for n in val if n in cluster} & {cluster[n] for n in train if n in cluster}


def test_written_arrays_come_back_unchanged(tmp_path: Path) -> None:
    chains = [chain("a", 7, (2, 4), 1), chain("b", 3, seed=2)]
    write_dataset(chains, tmp_path / "set")
    assert {"coords", "aatype", "resnum", "icode", "break_after", "bfactor", "offset"} == {
        path.stem for path in (tmp_path / "set").glob("*.npy")
    }
    for key in ("coords", "aatype", "resnum", "icode", "break_after", "bfactor"):
        stored = np.load(tmp_path / "set" / f"{key}.npy", mmap_mode="r")
        assert np.array_equal(stored, np.concatenate([getattr(c, key) for c in chains]))
    item = ProteinDataset(tmp_path / "set")[0]
    assert item["residue_index"].tolist() == [0, 1, 2, 3 + 33, 4 + 33, 5 + 66, 6 + 66]


def test_a_crash_leaves_the_old_data_set_and_no_rubbish(folder: Path) -> None:
    before = (folder / "index.json").read_bytes()
    with pytest.raises(RuntimeError, match="power"), DatasetWriter(folder) as writer:
        writer.add(chain("new", 5))
        raise RuntimeError("power")
    with pytest.raises(ValueError, match="two chains are named 'c'"):
        write_dataset([chain("c", 5), chain("c", 6)], folder)
    assert (folder / "index.json").read_bytes() == before and len(ProteinDataset(folder)) == 60
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    write_dataset([chain("new", 5)], folder)
    assert ProteinDataset(folder).names == ["new"] and len(list(folder.parent.iterdir())) == 1


def test_a_folder_that_is_no_data_set_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not a protein data set"):
        write_dataset([chain("a", 5)], tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_noise_of_trajectories_is_no_training_data(tmp_path: Path) -> None:
    write_pdb(walk(60), None, tmp_path / "raw" / "sample_000.pdb")
    for name in ("sample_000_trajectory.pdb", "a_pX0_traj.pdb"):
        write_trajectory(10 * torch.randn(3, 60, 4, 3), tmp_path / "raw" / name)
    result = prepare([str(tmp_path / "raw")], str(tmp_path / "out"))
    assert result.chains == 1 and ProteinDataset(tmp_path / "out").names == ["sample_000_A"]
    assert [reason.partition(":")[0] for _, _, reason in result.rejected] == ["a trajectory by its name"] * 2
    (tmp_path / "raw" / "sample_000.pdb").unlink()
    with pytest.raises(ValueError, match="nothing but trajectories"):
        prepare([str(tmp_path / "raw")], str(tmp_path / "other"))


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "not finite"), (1e30, "beyond 100,000 A")])
def test_an_absurd_chain_is_left_out_with_its_reason_and_does_not_end_the_run(
    tmp_path: Path, value: float, reason: str
) -> None:
    coords = torch.cat([walk(60), walk(60, 1)]).numpy()
    coords[70, 1, 0] = value
    np.savez(
        tmp_path / "set.npz",
        name=["a_A", "b_B"],
        offset=[0, 60, 120],
        coords=coords,
        aatype=np.array(["A"] * 120),
        break_after=np.zeros(120, bool),
    )
    result = prepare([str(tmp_path / "set.npz")], str(tmp_path / "out"))
    assert result.chains == 1 and [(name, reason in why) for _, name, why in result.rejected] == [("b_B", True)]


@pytest.mark.parametrize("others", [["mine.txt"], ["coords.npy.bak", "notes"], [".hidden"]])
def test_an_older_data_set_is_replaced_but_nothing_else_in_its_folder(folder: Path, others: list[str]) -> None:
    write_dataset([chain("new", 12)], folder)
    assert ProteinDataset(folder).names == ["new"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set"]  # no leftovers beside it
    for name in others:
        (folder / name).write_text("hours of work")
    with pytest.raises(FileExistsError, match=f"beside the data set also holds {sorted(others)[0]}"):
        DatasetWriter(folder)
    assert ProteinDataset(folder).names == ["new"] and all((folder / name).is_file() for name in others)


@pytest.mark.parametrize("index", ["{}", "[1]", '{"posts": 3}', "not json", '{"name": "x", "files": ["a.txt"]}'])
def test_a_folder_with_an_index_of_something_else_is_left_alone(tmp_path: Path, index: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.json").write_text(index)
    (site / "a.txt").write_text("hours of work")
    with pytest.raises(FileExistsError, match=r"is not a protein data set and holds a\.txt, index\.json"):
        write_dataset([chain("new", 12)], site)
    assert sorted(path.name for path in site.iterdir()) == ["a.txt", "index.json"]


def test_files_that_arrive_while_the_data_set_is_made_stay(folder: Path) -> None:
    with pytest.raises(FileExistsError, match="late"), DatasetWriter(folder) as writer:
        writer.add(chain("new", 12))
        (folder / "late.txt").write_text("hours of work")
    assert (folder / "late.txt").is_file() and len(ProteinDataset(folder)) == 60
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set"]


def test_a_data_set_behind_a_link_is_replaced_where_it_lies(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    write_dataset([chain("new", 12)], tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and ProteinDataset(folder).names == ["new"]


def test_damaged_or_missing_data_sets_say_so(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no protein data set here.*prepare"):
        ProteinDataset(folder.parent / "gone")
    with pytest.raises(ValueError, match="no chain is named 'zz'"):
        ProteinDataset(folder, names=["zz"])
    with pytest.raises(ValueError, match="none of 60 chains has 500"):
        ProteinDataset(folder, min_length=500)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        ProteinDataset(folder)
    (folder / "index.json").write_text('{"name": [')
    with pytest.raises(ValueError, match="damaged index"):
        ProteinDataset(folder)


def test_truncated_array_is_one_clear_error(folder: Path) -> None:
    content = (folder / "coords.npy").read_bytes()
    (folder / "coords.npy").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"coords\.npy: missing or damaged"):
        ProteinDataset(folder)
    np.save(folder / "coords.npy", np.zeros((3, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"coords\.npy: 3 rows, index\.json says"):
        ProteinDataset(folder)


def test_long_chains_are_cropped_at_random_or_left_out(folder: Path) -> None:
    whole, cropped = ProteinDataset(folder), ProteinDataset(folder, max_length=20)
    assert max(cropped.lengths) == 20 and len(cropped) == 60
    assert max(ProteinDataset(folder, max_length=20, crop=False).lengths) == 20
    assert len(ProteinDataset(folder, max_length=20, crop=False)) == 11
    assert min(ProteinDataset(folder, min_length=30).lengths) == 30
    starts, again = set(), ProteinDataset(folder, max_length=20)
    for epoch in range(200):
        cropped.set_epoch(epoch)
        again.set_epoch(epoch)
        item = cropped[59]  # 69 residues: 50 starts
        full = whole[59]["coords"]
        start = int((full[:, 1] - item["coords"][0, 1]).abs().sum(-1).argmin())
        assert torch.equal(item["coords"], full[start : start + 20]) and item["residue_index"][0] == 0
        assert torch.equal(item["coords"], again[59]["coords"])  # from seed, epoch and item alone
        starts.add(start)
    assert len(starts) > 40 and min(starts) == 0 and max(starts) == 49


def test_pickled_data_set_maps_the_files_again(folder: Path) -> None:
    dataset = ProteinDataset(folder)
    payload = pickle.dumps(dataset)
    assert len(payload) < 20_000 < (folder / "coords.npy").stat().st_size
    assert torch.equal(pickle.loads(payload)[5]["coords"], dataset[5]["coords"])
    shuffled = ProteinDataset(folder, names=["c9", "c3"])
    assert [shuffled[i]["name"] for i in range(2)] == ["c9", "c3"] and shuffled.clusters == ["2", "0"]


def test_opening_does_not_load_the_coordinates(tmp_path: Path) -> None:
    write_dataset([chain(f"c{i}", 20_000, seed=i) for i in range(5)], tmp_path / "set")  # 4.8 MB of coordinates
    tracemalloc.start()
    dataset = ProteinDataset(tmp_path / "set", max_length=100)
    dataset[3]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


def test_collate_pads_with_the_origin_and_centres_each_chain(folder: Path) -> None:
    dataset = ProteinDataset(folder)
    batch = collate([dataset[0], dataset[30]])
    x, mask, cond = batch["x"], batch["mask"], batch["cond"]
    assert mask.sum(1).tolist() == [10, 40] and x["trans"].shape == (2, 40, 3) and x["rots"].shape == (2, 40, 3, 3)
    assert (x["trans"][0, 10:] == 0).all() and (x["rots"][0, 10:] == torch.eye(3)).all()
    assert (cond["aatype"][0, 10:] == 20).all() and cond["residue_index"].dtype == torch.int64
    assert x["trans"].sum(1).abs().max() < 1e-3
    alone = collate([dataset[0]])
    assert torch.equal(alone["x"]["trans"][0], x["trans"][0, :10])  # padding changes nothing
    relative = dataset[30]["coords"][:, 1] - dataset[30]["coords"][0, 1]
    assert torch.allclose(x["trans"][1] - x["trans"][1, 0], relative, atol=1e-4)


@pytest.mark.parametrize("world_size", [1, 3])
def test_token_batches_respect_the_bounds_and_share_all_chains_between_ranks(world_size: int) -> None:
    lengths = np.random.default_rng(0).integers(50, 257, 500).tolist()
    ranks = [TokenBatches(lengths, 2048, max_square=200_000, rank=r, world_size=world_size) for r in range(world_size)]
    seen_orders = []
    for epoch in range(4):
        shares = []
        for rank in ranks:
            rank.set_epoch(epoch)
            shares.append(list(rank))
        assert {len(share) for share in shares} == {len(ranks[0])}
        batches = [batch for share in shares for batch in share]
        for batch in batches:
            longest = max(lengths[i] for i in batch)
            assert len(batch) * longest <= 2048 and len(batch) * longest**2 <= 200_000
        distinct = {tuple(batch) for batch in batches}
        assert len({i for batch in batches for i in batch}) >= 0.95 * len(lengths)
        assert sum(map(len, distinct)) == len({i for batch in batches for i in batch})  # nothing twice in an epoch
        padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
        assert sum(lengths[i] for b in batches for i in b) > 0.85 * padded
        seen_orders.append(batches)
        assert [list(rank) for rank in ranks] == shares  # the same epoch again is the same order
    assert all(seen_orders[0] != order for order in seen_orders[1:])


def test_unshuffled_batches_hold_every_chain_once() -> None:
    lengths = [60, 50, 70, 55, 65, 300]
    batches = list(TokenBatches(lengths, 300, shuffle=False))
    assert sorted(i for batch in batches for i in batch) == list(range(6)) and batches[-1] == [5]
    with pytest.raises(ValueError, match="a chain of 300 residues does not fit max_tokens=299"):
        TokenBatches(lengths, 299)
    with pytest.raises(ValueError, match=r"rank must be in 0\.\.1"):
        TokenBatches(lengths, 300, rank=2, world_size=2)


def test_loader_with_token_batches_runs_over_the_data_set(folder: Path) -> None:
    dataset = ProteinDataset(folder, max_length=40)
    batches = TokenBatches(dataset, 200, shuffle=False)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=0)
    assert sum(int(batch["mask"].sum()) for batch in loader) == sum(dataset.lengths)
    assert len(loader) == len(batches)


def test_no_cluster_is_on_both_sides_of_the_split(folder: Path) -> None:
    dataset = ProteinDataset(folder)
    train, val = split_by_cluster(folder, 0.2, seed=3)
    cluster = dict(zip(dataset.names, dataset.clusters, strict=True))
    assert sorted(train + val) == sorted(dataset.names) and len(val) == 12
    assert not {cluster[n] for n in train} & {cluster[n] for n in val}
    assert split_by_cluster(dataset, 0.2, seed=3) == (train, val) != split_by_cluster(dataset, 0.2, seed=4)
    with pytest.raises(ValueError, match="no cluster fits"):
        split_by_cluster(dataset, 0.01)
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\)"):
        split_by_cluster(dataset, 1.0)


def test_chains_of_equal_sequence_share_a_cluster_when_none_is_known(tmp_path: Path) -> None:
    write_pdb(torch.stack([walk(50, 0), walk(50, 1), walk(55, 2)[:50]]), None, tmp_path / "in")
    shutil.copy(tmp_path / "in" / "sample_000.pdb", tmp_path / "in" / "other.pdb")
    prepare([str(tmp_path / "in")], str(tmp_path / "out"))
    assert len(set(ProteinDataset(tmp_path / "out").clusters)) == 1  # all are poly-glycine
