"""Records of any parts, from tars and Parquet; only wanted rows are read, and bytes counted."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from latentlm_platform.corpora.corpus_index import CorpusIndex, open_corpus
from latentlm_platform.corpora.records import BadRecord, Decoded, PartSource, decode_record
from latentlm_platform.corpora.splits import Split
from latentlm_platform.errors import UserError
from making_corpora import (
    CLASSES,
    corpus,
    image_bytes,
    make_folders,
    make_parquet,
    make_tar,
    opened,
    plain_table,
    png,
)

TEXT = PartSource("text", "text", scored=True)
PAIR = (PartSource("text", "caption", scored=False), PartSource("image", "image", scored=True))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))


@dataclass
class Count:
    """Bytes read."""

    bytes: int = 0


def decoded(index: CorpusIndex) -> dict[str, Decoded | BadRecord]:
    split = Split(index, corpus(), "all", 0)
    chunks = range(len(index.chunk_sizes))
    return {signal.key: signal for chunk in chunks for signal in split.decode_chunk(chunk)}


class TestParts:
    def test_a_class_image_is_a_given_label_and_a_scored_image(self, tmp_path: Path) -> None:
        index = opened(make_folders(tmp_path / "c"))
        record = next(r for r in index.read_chunk(0) if r.group == "dog")
        assert [(part.kind, part.scored) for part in record.parts] == [
            ("label", False),
            ("image", True),
        ]
        signal = decode_record(record, corpus=corpus())
        assert isinstance(signal, Decoded)
        assert signal.scored == (False, True)
        assert signal.parts[0] == signal.label == CLASSES.index("dog")
        assert signal.pixels is signal.parts[1] or np.array_equal(signal.pixels, signal.parts[1])
        assert (signal.pixels.shape, signal.pixels.dtype) == ((8, 8, 3), np.uint8)

    def test_tars_of_text_and_image(self, tmp_path: Path) -> None:
        members = []
        for number in range(10):
            members.append((f"{number}.txt", f"picture {number} – ü".encode()))
            members.append((f"{number}.jpg", png(number)))
        members += [("lonely.jpg", png(1)), ("silent.txt", b"no picture")]
        members += [("bad.txt", b"\xff\xfe"), ("bad.png", png(1))]
        members += [("blank.txt", b" \n"), ("blank.png", png(1))]
        members += [("twice.txt", b"a"), ("twice.txt", b"b"), ("twice.png", png(1))]
        path = make_tar(tmp_path / "a.tar", members)
        index = open_corpus(str(path), corpus=corpus(), parts=PAIR)
        found = decoded(index)
        assert index.record_count == len(found) == 15
        for number in range(10):
            signal = found[f"a.tar#{number}"]
            assert isinstance(signal, Decoded)
            text, picture = signal.parts
            assert text == f"picture {number} – ü"
            assert isinstance(picture, np.ndarray)
            assert picture[0, 0, 0] == number
            assert signal.scored == (False, True)
        kinds = {k.split("#")[1]: s.kind for k, s in found.items() if isinstance(s, BadRecord)}
        assert kinds == {
            "lonely": "missing_text",
            "silent": "missing_image",
            "bad": "unreadable_text",
            "blank": "missing_text",
            "twice": "duplicate_key",
        }
        assert set(index.labels.tolist()) == {-1}

    def test_tars_of_text_alone(self, tmp_path: Path) -> None:
        path = make_tar(tmp_path / "a.tar", [(f"{n}.txt", b"page %d" % n) for n in range(6)])
        found = decoded(open_corpus(str(path), corpus=corpus(), parts=(TEXT,)))
        assert [s.parts for s in found.values() if isinstance(s, Decoded)] == [
            (f"page {n}",) for n in range(6)
        ]
        assert all(s.scored == (True,) for s in found.values() if isinstance(s, Decoded))

    def test_other_parts_are_another_index(self, tmp_path: Path) -> None:
        path = make_tar(tmp_path / "a.tar")
        assert open_corpus(str(path), corpus=corpus(), parts=(TEXT,)).digest != opened(path).digest

    def test_parquet_of_text_and_image(self, tmp_path: Path) -> None:
        table = plain_table(4).rename_columns(["image", "n"])
        table = table.append_column("caption", pa.array(["a", None, "c", ""]))
        path = make_parquet(tmp_path / "a.parquet", table)
        found = list(decoded(open_corpus(str(path), corpus=corpus(), parts=PAIR)).values())
        assert [s.parts[0] for s in found if isinstance(s, Decoded)] == ["a", "c"]
        assert [s.kind for s in found if isinstance(s, BadRecord)] == ["missing_text"] * 2
        numbers = (PartSource("text", "n", scored=True),)
        with pytest.raises(UserError, match=r"column 'n' of a\.parquet is int64; expected text"):
            open_corpus(str(path), corpus=corpus(), parts=numbers)

    def test_images_beside_the_table_are_read_by_path(self, tmp_path: Path) -> None:
        root = make_folders(tmp_path / "c" / "pictures").parent
        (tmp_path / "secret.png").write_bytes(png(9))
        paths = ["pictures/bird/0.png", "pictures/gone.png", "../secret.png", "", None]
        paths += [str(tmp_path / "secret.png"), "pictures/../../secret.png", "bytes.png"]
        images = [{"bytes": None, "path": path} for path in paths[:-1]]
        images.append({"bytes": png(3), "path": paths[-1]})
        make_parquet(root / "a.parquet", pa.table({"image": images, "label": [0] * 8}))
        found = list(decoded(opened(root, layout="parquet")).values())
        assert [int(s.pixels[0, 0, 0]) for s in found if isinstance(s, Decoded)] == [0, 3]
        bad = [s for s in found if isinstance(s, BadRecord)]
        assert [s.kind for s in bad] == ["missing_image"] * 6
        assert {s.group for s in bad} == {"0"}
        assert "there is no file" in bad[0].reason
        assert "lies outside" in bad[1].reason

    def test_bad_records_know_their_class(self, tmp_path: Path) -> None:
        root = make_folders(tmp_path / "c")
        (root / "cat" / "text.png").write_bytes(b"hello")
        (root / "stray.png").write_bytes(png(1))
        bad = [s for s in decoded(opened(root)).values() if isinstance(s, BadRecord)]
        assert {(s.kind, s.group) for s in bad} == {("not_an_image", "cat"), ("missing_label", "")}


class TestRows:
    """Some rows of a chunk are those rows of the whole chunk, at the price of their bytes."""

    @pytest.fixture(params=["folder", "parquet", "webdataset"])
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        if request.param == "folder":
            return make_folders(tmp_path / "c")
        if request.param == "parquet":
            return make_parquet(tmp_path / "a.parquet", group_rows=3)
        return make_tar(tmp_path / "a.tar")

    @pytest.mark.parametrize("rows", [[0], [11], [1, 2, 7], [0, 3, 6, 9], list(range(12)), []])
    def test_rows_are_those_of_the_chunk(self, source: Path, rows: list[int]) -> None:
        index = opened(source, chunk_records=12)
        whole = list(index.read_chunk(0))
        assert list(index.read_chunk(0, np.array(rows, np.int64))) == [whole[row] for row in rows]

    def test_bytes_are_counted(self, source: Path) -> None:
        index = opened(source, chunk_records=12)
        images = [len(image_bytes(record)) for record in index.read_chunk(0)]
        stored = sum(path.stat().st_size for path in [source, *source.rglob("*")] if path.is_file())
        every, one = Count(), Count()
        assert len(list(index.read_chunk(0, meter=every))) == 12
        assert sum(images) <= every.bytes <= stored
        assert len(list(index.read_chunk(0, np.array([4]), one))) == 1
        assert images[4] <= one.bytes < every.bytes / 2
        split = Count()
        Split(index, corpus(), "all", 0).decode_chunk(0, meter=split)
        assert split.bytes == every.bytes

    def test_a_chunk_of_several_reads_no_more_than_its_groups(self, tmp_path: Path) -> None:
        images = [np.random.default_rng(n).bytes(20_000) for n in range(40)]
        table = pa.table({"image": images, "label": [0] * 40})
        path = make_parquet(tmp_path / "a.parquet", table, group_rows=5)
        index = opened(path, chunk_records=10)
        assert index.chunk_sizes.tolist() == [10] * 4
        meters = [Count() for _ in range(4)]
        for chunk, meter in enumerate(meters):
            assert len(list(index.read_chunk(chunk, meter=meter))) == 10
        assert sum(meter.bytes for meter in meters) < 1.02 * path.stat().st_size
