"""The paper's numbers: every file is read, every experiment finds its own, mistakes are located."""

import re
from pathlib import Path

import pytest

from latentlm_dashboards.paper import paper_folder, paper_items, read_paper_item
from latentlm_platform.errors import UserError

ROOT = Path(__file__).parents[2]
FILES = sorted(paper_folder().glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_read_and_called_what_it_holds(path: Path) -> None:
    item = read_paper_item(path)
    assert item.item.lower().replace(" ", "_") == path.stem
    assert item.rows or item.only_in_figure, "neither numbers nor a word on where they are"
    assert not item.item.startswith("Table") or item.rows


def test_every_experiment_that_reproduces_something_finds_it() -> None:
    said = {
        match[1].strip()
        for path in (ROOT / "experiments").rglob("*.yaml")
        if (match := re.search(r"^reproduces: (.+)$", path.read_text(), re.MULTILINE))
    }
    assert len(said) > 10
    for reproduces in said - {"null"}:
        named = set(re.findall(r"Table \d+|Figure \d+", reproduces))
        assert {item.item for item in paper_items(reproduces)} == named, reproduces
    assert paper_items("") == paper_items("Table 12") == []


def test_numbers_are_those_of_the_abstracts_claims() -> None:
    """Figures that the paper repeats in its text, so that a slip of the pen is seen."""
    (table,) = paper_items("Table 4")
    at_15 = next(row for row in table.rows if row[:2] == ("LatentLM", "15"))
    valle = next(row for row in table.rows if row[0] == "VALL-E 2")
    assert float(at_15[2]) > float(valle[2])  # "surpasses VALL-E 2 in speaker similarity"
    assert float(valle[1]) / 7.5 == 10  # "10 × fewer decoding steps"
    (images,) = paper_items("Table 1")
    ours = next(row for row in images.rows if row[1] == "LatentLM-L")
    causal = [row for row in images.rows if row[0].startswith("causal")]
    assert float(ours[4]) == min(float(row[4]) for row in causal) == 2.24
    (mllm,) = paper_items("Table 3")
    best = {row[0]: float(row[2]) for row in mllm.rows}
    assert min(best, key=best.__getitem__) == "LatentLM"


def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "table_2.yaml"
    path.write_text(
        "item: Table 2\ntitle: t\nplace: p\ncolumns: [a, b]\nrows:\n  - [x, 3.19]\n  - [x]\n"
        "setting: {colour: red}\nfigures: 1\n"
    )
    with pytest.raises(UserError) as caught:
        read_paper_item(path)
    text = str(caught.value)
    assert "4 problems" in text
    for part in (f"{path}:6:5", 'rows.1 = ["x"]', "setting.colour", "unknown key figures"):
        assert part in text
