"""Reading points on manifolds: real sets, any table, splits, and one clear error for every bad input."""

import gzip
import math

import numpy as np
import pytest
import torch

import manifoldflow as mf
from manifoldflow.distributions.von_mises import log_normalizer
from manifoldflow.tasks.densities.data import load_data, merge_equal
from manifoldflow.tasks.densities.kde import fit_kde
from manifoldflow.tasks.densities.spaces import NAMES, name_of, space_of, to_points, to_table
from manifoldflow.tasks.densities.splits import seen_share, split
from testkit.shared import SHARED_DATA, needs_shared_data


def table(path, lines, header="latitude,longitude"):
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


GOOD = [f"{lat},{lon}" for lat, lon in ((10, 20), (-45, 170), (80, -30), (0, 0), (33, 139), (10, 20))]


def test_latitude_and_longitude_become_unit_vectors(tmp_path):
    x = load_data(table(tmp_path / "a.csv", GOOD), "sphere").x
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-12
    assert (x[3] - torch.tensor([1.0, 0.0, 0.0])).abs().max() < 1e-12
    assert abs(float(x[0, 2]) - math.sin(math.radians(10))) < 1e-12


def test_columns_are_found_by_name_in_either_order(tmp_path):
    straight = load_data(table(tmp_path / "a.csv", GOOD), "sphere").x
    swapped = [",".join(row.split(",")[::-1]) for row in GOOD]
    other = load_data(table(tmp_path / "b.csv", swapped, "Longitude,Lat"), "sphere").x
    assert torch.equal(straight, other)


def test_tab_separated_and_zipped_tables_are_read(tmp_path):
    with gzip.open(tmp_path / "a.tsv.gz", "wt") as file:
        file.write("# comment\nphi\tpsi\n10\t20\n-170\t90\n0\t0\n")
    made = load_data(str(tmp_path / "a.tsv.gz"), "torus")
    assert made.space == mf.Torus(2, 2 * math.pi)
    assert (made.x[1] - torch.tensor([190.0, 90.0]).deg2rad()).abs().max() < 1e-6


def test_arrays_of_rotations_are_read(tmp_path):
    r = mf.SO3().sample_uniform((5,), dtype=torch.float64)
    np.savez(tmp_path / "r.npz", rotations=r.numpy())
    assert (load_data(str(tmp_path / "r.npz"), "so3").x - r).abs().max() < 1e-12
    q = load_data(str(tmp_path / "r.npz"), "quaternion")
    assert q.space == mf.UnitQuaternion()
    assert q.x.shape == (5, 4)


BAD = {
    "latitude beyond 90": (["91,0", "1,2"], "line 2.*latitude lies between"),
    "swapped columns": (["120,10", "100,-20", "5,6"], "swapped"),
    "NaN": (["1,2", "nan,3", "4,5"], "line 3.*no number"),
    "empty cell": (["1,2", ",3", "4,5"], "line 3.*no number"),
    "text": (["1,2", "north,3"], "line 3.*'north'"),
    "short line": (["1,2", "3"], "line 3: 1 cells"),
    "one row": (["1,2"], "at least 2 rows"),
    "no rows": ([], "no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(tmp_path, name):
    lines, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        load_data(table(tmp_path / "a.csv", lines), "sphere")


def test_a_missing_column_is_named(tmp_path):
    path = table(tmp_path / "a.csv", GOOD, "latitude,depth")
    with pytest.raises(ValueError, match="none for the longitude"):
        load_data(path, "sphere")
    with pytest.raises(ValueError, match=r"no column 'lon'"):
        load_data(path, "sphere", columns="latitude,lon")


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_data(str(tmp_path / "none.csv"), "sphere")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="holds no data"):
        load_data(str(tmp_path / "empty.csv"), "sphere")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="damaged or cut off"):
        load_data(str(tmp_path / "cut.npz"), "sphere")
    with pytest.raises(ValueError, match="did you mean 'earthquake'"):
        load_data("earthquke")
    with pytest.raises(ValueError, match="where its points live"):
        load_data(table(tmp_path / "a.csv", GOOD))


def test_radians_read_as_degrees_are_doubted(tmp_path):
    lines = [f"{a},{b}" for a, b in ((0.1, 3.0), (-1.2, -2.0), (1.4, 0.5), (0.3, 0.2))]
    with pytest.warns(UserWarning, match="radians"):
        load_data(table(tmp_path / "a.csv", lines), "sphere")
    with pytest.warns(UserWarning, match="degrees"):
        load_data(table(tmp_path / "b.csv", ["100,20", "170,30", "5,6"], "phi,psi"), "torus", units="radians")


def test_points_off_the_manifold_are_named(tmp_path):
    lines = ["1,0,0", "0,1,0.2", "0,0,1"]
    with pytest.raises(ValueError, match=r"line 3.*do not lie on"):
        load_data(table(tmp_path / "a.csv", lines, "x,y,z"), "sphere")
    with pytest.raises(ValueError, match="do not lie on"):
        load_data(table(tmp_path / "b.csv", ["0.5,0.6", "0.5,0.5"], "a,b"), "simplex")
    rotation = np.eye(3)[None].repeat(3, 0)
    rotation[1, 0, 0] = -1  # a reflection
    np.savez(tmp_path / "r.npz", rotations=rotation)
    with pytest.raises(ValueError, match=r"row 1.*do not lie on"):
        load_data(str(tmp_path / "r.npz"), "so3")


def test_rows_without_numbers_can_be_left_out(tmp_path):
    with pytest.warns(UserWarning, match="1 of 3 rows left out"):
        assert len(load_data(table(tmp_path / "a.csv", ["1,2", ",3", "40,50"]), "sphere", drop_nan=True)) == 2


@pytest.mark.parametrize("name", [n if n in ("so3", "quaternion") else f"{n}:3" for n in NAMES])
def test_spaces_are_named_both_ways_and_tables_are_read_back(name):
    space = space_of(name)
    assert name_of(space) == name
    if name.startswith("euclidean"):
        x = torch.randn(4, 3, dtype=torch.float64)
    else:
        x = space.sample_uniform((4,), dtype=torch.float64)
    again = to_points(space, to_table(space, x)[1], in_degrees=True)
    assert space.dist(again, x).max() < 1e-7


def test_equal_points_are_merged_and_splits_share_nothing(tmp_path):
    data = load_data(table(tmp_path / "a.csv", [f"{i % 20},{i % 20}" for i in range(100)]), "sphere")
    assert len(merge_equal(data.x, data.space)) == 20
    parts = split(data, "deduplicated", 1)
    assert sorted(torch.cat(parts).tolist()) == list(range(20))
    assert seen_share(data, parts) == 0
    published = split(data, "published", 1)
    assert sorted(torch.cat(published).tolist()) == list(range(100))
    assert seen_share(data, published) > 0.9
    assert torch.equal(published.test, split(data, "published", 1).test)
    assert not torch.equal(published.test, split(data, "published", 2).test)


def test_groups_stay_on_one_side(tmp_path):
    lines = [f"{i},{i},{'abcdefghijklmnopqrst'[i % 20]}" for i in range(80)]
    data = load_data(table(tmp_path / "a.csv", lines, "lat,lon,chain"), "sphere", group_column="chain")
    parts = split(data, "chain", 0)
    sets = [{data.groups[i] for i in part.tolist()} for part in parts]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    assert sum(map(len, parts)) == 80


@pytest.mark.parametrize("name", ["sphere:2", "sphere:4", "torus:2", "so3", "euclidean:2"])
@pytest.mark.parametrize("kappa", [0.3, 5.0, 80.0])
def test_kernels_integrate_to_one(name, kappa):
    space = space_of(name)
    generator = torch.Generator().manual_seed(0)
    front = float(log_normalizer(space, torch.tensor([kappa], dtype=torch.float64)))
    centre = space.origin((1,), dtype=torch.float64)
    if name == "euclidean:2":  # a closed form
        assert abs(front - math.log(kappa / (2 * math.pi))) < 1e-12
        return
    x = space.sample_uniform((400_000,), generator=generator, dtype=torch.float64)
    angle = space.dist(centre.expand_as(x), x)
    h = (1 - (x - centre).cos()).sum(-1) if name == "torus:2" else 1 - angle.cos()
    share = torch.exp(front + space.log_volume - kappa * h)
    assert abs(float(share.mean()) - 1) < 5 * float(share.std()) / 400_000**0.5


def test_two_scales_are_never_worse_where_they_are_chosen():
    space, generator = mf.Sphere(2), torch.Generator().manual_seed(0)
    tight = mf.WrappedNormal(space, 0.02, mean=torch.tensor([1.0, 0.0, 0.0]))
    wide = mf.WrappedNormal(space, 0.5, mean=torch.tensor([0.0, 1.0, 0.0]))
    x = torch.cat([law.sample((300,), generator=generator, dtype=torch.float64) for law in (tight, wide)])
    x = x[torch.randperm(600, generator=generator)]
    one, two = (
        -float(fit_kde(space, x[:400], x[400:500], kind).log_prob(x[400:500]).mean()) for kind in ("one", "two")
    )
    assert two < one - 0.1


@needs_shared_data
def test_the_published_sets_have_the_published_sizes_and_the_known_copies():
    assert len(load_data("earthquake")) == 6120
    volcano = load_data("volcano")
    assert len(volcano) == 827
    assert len(merge_equal(volcano.x, volcano.space)) == 267
    assert 0.7 < seen_share(volcano, split(volcano)) < 0.95
    assert load_data("rotamers:HIS").space == mf.Torus(4, 2 * math.pi)
    assert (SHARED_DATA / "earth").is_dir()
