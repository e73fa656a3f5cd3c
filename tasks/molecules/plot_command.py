"""``manifoldflow plot molecules``: draw the molecules of a file."""

from pathlib import Path

from manifoldflow.tasks.common.tables import plural
from manifoldflow.tasks.molecules.reading import read_molecules
from manifoldflow.tasks.molecules.report import draw_grid, write_report


def plot(
    samples: str,
    out: str = "molecules.png",
    num: int = 30,
    label: str | None = None,
    columns: int = 5,
    title: str | None = None,
    seed: int = 0,
) -> None:
    """Draw the first molecules of a file as a picture (.png), or as a page with turning conformers (.html).

    Args:
        samples: SMILES list, table or SDF.
        out: picture or page to write.
        num: number of molecules.
        label: column of a table, or property of an SDF, to write below each; the names by default.
        columns: of the picture.
        title: of the page.
        seed: of the conformers.
    """
    path = Path(out)
    if path.suffix.lower() not in (".png", ".html"):
        raise ValueError(f"--out {out}: expected a file that ends in .png or .html")
    if num < 1 or columns < 1:
        raise ValueError(f"--num and --columns must be at least 1, got {num} and {columns}")
    found = read_molecules(samples)
    if found.rejected:
        print(found.summary())
    if label is not None and not any(label in r.properties for r in found.records):
        known = ", ".join(dict.fromkeys(k for r in found.records for k in r.properties)) or "none"
        raise ValueError(f"{samples}: no column or property {label!r} (--label); there are: {known}")
    records = found.records[:num]
    captions = [r.name if label is None else f"{label} {r.properties.get(label) or '-'}" for r in records]
    smiles = [r.smiles for r in records]
    if path.suffix.lower() == ".png":
        draw_grid(path, smiles, captions, columns)
    else:
        facts = {"file": samples, "molecules": f"{len(found):,}"}
        write_report(path, title or Path(samples).name, smiles, captions, facts=facts, seed=seed)
    print(f"drew {plural(len(smiles), 'molecule')}: {out}")
