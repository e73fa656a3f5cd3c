"""Letters, files and the other strand."""

import gzip
from pathlib import Path

import pytest
import torch

from manifoldflow.tasks.dna.alphabet import IUPAC, allowed_letters, decode, encode, reverse_complement
from manifoldflow.tasks.dna.reading import read_sequences, write_fasta
from manifoldflow.tasks.dna.sequences import SequenceSet
from manifoldflow.tasks.dna.sets import load_set
from manifoldflow.tasks.dna.splits import split
from testkit.shared import needs_shared_data


def test_letters_go_there_and_back():
    sequences = ["ACGT", "ttga", "G", "acgTACGUu"]
    tokens, mask, kept = encode(sequences)
    assert decode(tokens, mask) == ["ACGT", "TTGA", "G", "ACGTACGTT"]
    assert kept.tolist() == [0, 1, 2, 3] and (tokens[~mask] == 0).all()


def test_the_other_strand_is_biopythons():
    seq = pytest.importorskip("Bio.Seq")
    sequences = ["ACGTTTGA", "GGC", "T"]
    tokens, mask, _ = encode(sequences)
    turned = decode(reverse_complement(tokens, mask), mask)
    assert turned == [str(seq.Seq(s).reverse_complement()) for s in sequences]
    assert (reverse_complement(reverse_complement(tokens, mask), mask) == tokens).all()


def test_codes_for_several_letters():
    with pytest.raises(ValueError, match=r"sequence 1, position 2: 'N'.*2 such"):
        encode(["ACGT", "ANGR"])
    tokens, mask, kept = encode(["ACGT", "ANGR", "GGGG"], unknown="drop")
    assert decode(tokens, mask) == ["ACGT", "GGGG"] and kept.tolist() == [0, 2]
    drawn, _, _ = encode(["NRYSWKMBDHV"] * 4000, unknown="random", generator=torch.Generator().manual_seed(0))
    for place, code in enumerate("NRYSWKMBDHV"):
        share = torch.bincount(drawn[:, place], minlength=4) / 4000
        allowed = torch.tensor([letter in IUPAC[code] for letter in "ACGT"]).float()
        assert (share - allowed / allowed.sum()).abs().max() < 0.035
    assert allowed_letters("gN").tolist() == [[False, False, True, False], [True] * 4]


@pytest.mark.parametrize("packed", [False, True])
def test_fasta(tmp_path, packed):
    text = ">first label=tata\nACG\nTAC\n>second label=other some words\nggg\n"
    path = tmp_path / "some.fa"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    made = read_sequences(path)
    assert made.names == ["first", "second"] and made.classes == ("other", "tata")
    assert decode(made.tokens, made.mask) == ["ACGTAC", "GGG"] and made.labels.tolist() == [1, 0]


def test_tables(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text("id,Label,Sequence\na,x,ACGT\nb,y,ACNT\nc,x,TTTT\n")
    made = read_sequences(path, unknown="drop")
    assert made.names == ["a", "c"] and made.dropped == 1 and made.classes == ("x",)
    with pytest.raises(ValueError, match="no column 'dna'; it has id, Label, Sequence"):
        read_sequences(path, column="dna")
    with pytest.raises(ValueError, match="sequence 1, position 3"):
        read_sequences(path)
    path.write_text("name\tseq\none\tACG\n")
    assert read_sequences(path).labels is None


def test_written_fasta_is_read_back(tmp_path):
    tokens, mask, _ = encode(["ACGT", "GG"])
    path = write_fasta(tmp_path / "out" / "made.fa", tokens, mask=mask)
    made = read_sequences(path)
    assert decode(made.tokens, made.mask) == ["ACGT", "GG"] and made.names == ["sample_00000", "sample_00001"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "is empty"),
        (">a\n\n>b\nACG\n", "record 1"),
        (">a\nAC-GT\n", "position 3: '-'"),
        ("id,letters\na,ACG\n", "no column of sequences"),
        ("id,seq\na,\n", "row 2: no sequence"),
        ("id,seq\n", "holds no sequences"),
    ],
)
def test_bad_files_are_named(tmp_path, content, words):
    path = tmp_path / "bad.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_sequences(path)


def test_only_rows_of_a_species_are_kept(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text("species,seq\nmouse,ACG\nyeast,TTT\nmouse,GGG\n")
    made = read_sequences(path, species="mouse")
    assert decode(made.tokens, made.mask) == ["ACG", "GGG"]


def test_names_that_occur_twice_are_warned_of(tmp_path):
    (tmp_path / "a.fa").write_text(">a\nACG\n>a\nTTT\n")
    with pytest.warns(UserWarning, match="1 names occur more than once, first 'a'"):
        assert len(read_sequences(tmp_path / "a.fa")) == 2


def test_what_cannot_be_meant_is_refused(tmp_path):
    path = tmp_path / "a.fa"
    path.write_text(">a\nACG\n")
    with pytest.raises(ValueError, match="is FASTA, which has no columns; leave species='mouse'"):
        read_sequences(path, species="mouse")
    with pytest.raises(FileNotFoundError, match="the sets are ctcf_pu1"):
        load_set("ctcf-pu1")
    (tmp_path / "a.csv").write_text(f"id,seq\na,{'A' * 140_000}\n")
    with pytest.raises(ValueError, match=r"a\.csv is no whole table"):
        read_sequences(tmp_path / "a.csv")
    one = torch.zeros(1, 4, dtype=torch.int64)
    for name in ("a\n>b", ""):
        with pytest.raises(ValueError, match="one line"):
            write_fasta(tmp_path / "b.fa", one, names=[name])
    with pytest.raises(ValueError, match="2 names for 1"):
        write_fasta(tmp_path / "b.fa", one, names=["a", "b"])
    with pytest.raises(ValueError, match="sequence 0 is empty"):
        write_fasta(tmp_path / "b.fa", one, mask=torch.zeros(1, 4, dtype=torch.bool))
    assert not (tmp_path / "b.fa").exists()


def test_a_sequence_and_its_other_strand_are_on_one_side():
    base = torch.randint(4, (300, 12), generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([base, reverse_complement(base), base[:100]])
    data = SequenceSet([str(i) for i in range(700)], tokens, torch.ones_like(tokens, dtype=torch.bool), None, (), 0)
    parts = split(data, seed=3)
    assert torch.cat(parts).sort().values.tolist() == list(range(700))
    side = torch.empty(700, dtype=torch.int64)
    for number, rows in enumerate(parts):
        side[rows] = number
    assert (side[:300] == side[300:600]).all() and (side[:100] == side[600:]).all()
    assert [round(len(p) / 70) for p in parts] == [8, 1, 1]
    assert all((a == b).all() for a, b in zip(parts, split(data, seed=3), strict=True))
    assert len(split(data, seed=4).train) != len(parts.train) or (split(data, seed=4).train != parts.train).any()


def test_a_missing_or_broken_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_sequences(tmp_path / "none.fa")
    path = tmp_path / "half.fa.gz"
    path.write_bytes(gzip.compress(b">a\nACGT\n" * 1000)[:40])
    with pytest.raises(ValueError, match="whole gzip"):
        read_sequences(path)
    packed = bytearray(gzip.compress(b">a\nACGTTTGCA\n" * 500))
    packed[20:40] = b"\xff" * 20
    path.write_bytes(packed)
    with pytest.raises(ValueError, match="whole gzip"):
        read_sequences(path)


@needs_shared_data
@pytest.mark.parametrize(
    "name, count, length, classes",
    [
        ("ctcf_pu1", 20_396, 100, ("ctcf", "pu1")),
        ("promoters", 20_067, 251, ("non_promoter", "non_tata", "tata")),
        ("tata_promoters", 5_104, 300, None),
        ("ecoli", 5_752, 81, None),
        ("enhancers", 2_968, 200, ("enhancer", "non_enhancer")),
    ],
)
def test_shared_sets(name, count, length, classes):
    made = load_set(name)
    assert len(made) + made.dropped == count and made.tokens.shape[1] == length
    assert classes is None or made.classes == classes
    assert made.dropped < 0.02 * count


def fasta(path, headers, length=30):
    tokens = torch.randint(4, (len(headers), length), generator=torch.Generator().manual_seed(0))
    path.write_text("".join(f">{h}\n{s}\n" for h, s in zip(headers, decode(tokens), strict=True)))
    return path


NUMBERS = range(12)
HEADERS = {
    "names only": ([f"s{i}" for i in NUMBERS], ()),
    "peaks": ([f"chr1_{i}01-{i}60:+ peak_{i}" for i in NUMBERS], ()),
    "genes": ([f"ENST{i} gene=G{i // 4}" for i in NUMBERS], ()),
    "chromosomes": ([f"peak{i} chr{i % 2}" for i in NUMBERS], ()),
    "intervals": ([f"peak{i} chr1:{i % 2}-60(+)" for i in NUMBERS], ()),
    "strands": ([f"peak{i} {'+-'[i % 2]}" for i in NUMBERS], ()),
    "lengths": ([f"peak{i} len={i % 2}" for i in NUMBERS], ()),
    "numbers": ([f"peak{i} {i % 2}.5" for i in NUMBERS], ()),
    "one word for all": ([f"s{i} human" for i in NUMBERS], ()),
    "a class of one": ([f"s{i} {'ab'[i % 2] if i else 'c'}" for i in NUMBERS], ()),
    "descriptions": ([f"s{i} some {'ab'[i % 2]}" for i in NUMBERS], ()),
    "too many": ([f"s{i} {'abcdef'[i % 6]}" for i in NUMBERS], ()),
    "another label each": ([f"s{i} label=L{i}" for i in NUMBERS], ()),
    "second words": ([f"s{i} {'ab'[i % 2]}" for i in NUMBERS], ("a", "b")),
    "label=": ([f"s{i} some words label={'ab'[i % 2]} more" for i in NUMBERS], ("a", "b")),
    "class=": ([f"s{i} class={'ab'[i % 2]}" for i in NUMBERS], ("a", "b")),
    "label of one sequence": (["s0 label=a", "s1 label=b"], ("a", "b")),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_hold_classes_only_where_they_are_classes(tmp_path, kind):
    headers, classes = HEADERS[kind]
    made = read_sequences(fasta(tmp_path / "a.fa", headers))
    assert made.classes == classes and (made.labels is None) == (not classes)
    assert ("classes from" in made.note) == bool(classes)
    assert made.names == [h.split()[0] for h in headers]
    assert read_sequences(tmp_path / "a.fa", label_column="none").classes == ()


def test_headers_give_the_classes_that_are_asked_for(tmp_path):
    path = fasta(tmp_path / "a.fa", [f"s{i} gene=G{i % 3} cell:{'xy'[i % 2]} +" for i in NUMBERS])
    assert read_sequences(path, label_column="gene").classes == ("G0", "G1", "G2")
    made = read_sequences(path, label_column="cell")
    assert made.classes == ("x", "y") and made.labels[:3].tolist() == [0, 1, 0] and "cell" in made.note
    assert len(read_sequences(path, label_column="word2").classes) == 3
    with pytest.raises(ValueError, match=r"a\.fa: 12 headers have no 'tissue', first 's0'"):
        read_sequences(path, label_column="tissue")
    fasta(path, ["s0 label=a", "s1"])
    with pytest.raises(ValueError, match="1 headers have no label=, first 's1'"):
        read_sequences(path)


ROWS = [
    ("chr1", "1", "60", "p1", "ACGTA", "x"),
    ("chr1", "70", "90", "p2", "GGGTA", "y"),
    ("chr2", "1", "5", "p3", "ACGNA", "x"),
]
NAMES = ("chrom", "start", "end", "name", "sequence", "TAG")


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", " "])
@pytest.mark.parametrize("head", ["", "#", None])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_part_their_columns_by_anything(tmp_path, delimiter, head, end):
    lines = [delimiter.join(row) for row in ([] if head is None else [NAMES]) + ROWS]
    (tmp_path / "a.txt").write_bytes((("" if head is None else head) + end.join(lines) + end).encode())
    label = "TAG" if head is not None else "6"
    made = read_sequences(tmp_path / "a.txt", label_column=label, unknown="drop")
    assert decode(made.tokens, made.mask) == ["ACGTA", "GGGTA"] and made.classes == ("x", "y") and made.dropped == 1
    assert made.names == ["p1", "p2"]
    assert "classes from the column" in made.note


def test_columns_are_found_by_their_names(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("chr\tsequence\tTAG\nchr1\tACGT\tK562_ENC\nchr1\tACGA\thESC_ENC\n")
    assert read_sequences(path).classes == ("K562_ENC", "hESC_ENC") and "column TAG" in read_sequences(path).note
    assert read_sequences(path, label_column="chr").classes == ("chr1",)
    assert read_sequences(path, label_column="tag").classes == ("K562_ENC", "hESC_ENC")
    made = read_sequences(path, label_column="none")
    assert made.classes == () and "the columns are chr, sequence, TAG" in made.note
    with pytest.raises(ValueError, match="no column 'cell'; it has chr, sequence, TAG"):
        read_sequences(path, label_column="cell")
    path.write_text("peak;letters;score\na;ACGTACG;0,5\nb;GGGTACG;0,7\n")  # decimal commas, no usual name
    made = read_sequences(path)
    assert decode(made.tokens) == ["ACGTACG", "GGGTACG"] and "sequences from the column letters" in made.note
    path.write_text('id,description,sequence\na,"one, two",ACGT\nb,"three, four, five",TTTT\n')
    assert decode(read_sequences(path).tokens) == ["ACGT", "TTTT"]
    path.write_text("ACGT\nTTTT\n")
    assert decode(read_sequences(path).tokens) == ["ACGT", "TTTT"]
    path.write_text("sequence,label\n" + "".join(f"ACGT,L{i}\n" for i in range(12)))
    made = read_sequences(path)
    assert made.classes == () and "differs in every row" in made.note


def test_what_cannot_be_asked_of_a_set_or_written_is_said(tmp_path):
    with pytest.raises(ValueError, match="'planted' has no columns; leave species='mouse' out"):
        load_set("planted", species="mouse")
    with pytest.raises(OSError, match="No space left"):
        write_fasta("/dev/full", torch.zeros(1, 4, dtype=torch.int64))
    assert not Path("/dev/full").is_file()
    with pytest.raises(ValueError, match="is a folder, expected a file"):
        read_sequences(tmp_path)
