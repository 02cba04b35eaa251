"""Corpora of every layout, whole and damaged: each record is good or bad with one kind, and the
count never changes."""

import io
import json
import os
import pickle
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.media import encode_png
from latentlm_platform.corpora.class_images import (
    BadRecord,
    CorpusIndex,
    Decoded,
    decode_record,
    open_corpus,
)
from latentlm_platform.corpora.locating import is_lost, locate
from latentlm_platform.corpora.parquet_footers import TableFile, list_chunks
from latentlm_platform.corpora.tar_shards import split_name
from latentlm_platform.errors import UserError
from latentlm_platform.experiment import Corpus

CLASSES = ("bird", "cat", "dog")
SIZE = 8


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))


def corpus(**fields: Any) -> Corpus:
    given_fields: dict[str, Any] = {
        "source": "x",
        "classes": len(CLASSES),
        "image_size": SIZE,
        "chunk_records": 4,
    }
    return Corpus(**{**given_fields, **fields})


def png(number: int) -> bytes:
    """An image that tells its number: every pixel has that value."""
    return encode_png(np.full((SIZE, SIZE, 3), number, np.uint8))


def noise() -> bytes:
    """An image that does not compress, so that a cut goes through its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return encode_png(pixels)


def opened(source: object, **fields: object) -> CorpusIndex:
    return open_corpus(str(source), corpus=corpus(**fields))


def decoded(index: CorpusIndex) -> list[Decoded | BadRecord]:
    """Every record, after the laws that hold for every corpus."""
    found = []
    for chunk, size in enumerate(index.chunk_sizes):
        records = list(index.read_chunk(chunk))
        assert len(records) == size
        assert records == list(index.read_chunk(chunk))
        found += [decode_record(record, corpus=corpus()) for record in records]
    assert len(found) == index.record_count
    assert len({record.key for record in found}) == len(found)
    return found


def kinds(index: CorpusIndex) -> Counter[str]:
    return Counter(r.kind if isinstance(r, BadRecord) else "good" for r in decoded(index))


def labels(index: CorpusIndex) -> dict[int, int]:
    """Image number → class, of the good records."""
    good = [record for record in decoded(index) if isinstance(record, Decoded)]
    return {int(record.pixels[0, 0, 0]): record.label for record in good}


def make_folders(root: Path, *, count: int = 12) -> Path:
    for number in range(count):
        path = root / CLASSES[number % 3] / ("nested/deep" if number % 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return root


def make_parquet(path: Path, table: pa.Table | None = None, *, group_rows: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = plain_table(12) if table is None else table
    pq.write_table(
        table, path, row_group_size=group_rows, compression="none", write_page_checksum=True
    )
    return path


def plain_table(count: int) -> pa.Table:
    images = [png(number) for number in range(count)]
    return pa.table({"image": images, "label": [number % 3 for number in range(count)]})


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def make_tar(path: Path, members: list[tuple[str, bytes]] | None = None) -> Path:
    if members is None:
        members = [
            member
            for number in range(12)
            for member in (
                (f"{number:04}.png", png(number)),
                (f"{number:04}.cls", str(number % 3).encode()),
            )
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add(tar, name, data)
    return path


EXPECTED = {number: number % 3 for number in range(12)}


class TestEveryLayout:
    """The same twelve images, stored in three ways, are the same corpus."""

    @pytest.fixture(params=["folder", "parquet", "webdataset"])
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        root = tmp_path / "corpus"
        if request.param == "folder":
            return make_folders(root)
        if request.param == "parquet":
            return make_parquet(root / "train.parquet").parent
        return make_tar(root / "train.tar").parent

    def test_images_and_classes(self, source: Path) -> None:
        index = opened(source)
        assert labels(index) == EXPECTED
        assert index.record_count == 12
        assert index.chunk_sizes.tolist() == [4, 4, 4]

    def test_a_file_uri_is_the_same(self, source: Path) -> None:
        assert labels(opened(source.as_uri())) == EXPECTED

    def test_fsspec_uri_is_the_same(self, source: Path) -> None:
        import fsspec  # type: ignore[import-untyped]

        memory = fsspec.filesystem("memory")
        memory.put(str(source), f"/{source.parent.name}/corpus", recursive=True)
        assert labels(opened(f"memory://{source.parent.name}/corpus")) == EXPECTED

    def test_index_is_small_and_travels(self, source: Path) -> None:
        index = pickle.loads(pickle.dumps(opened(source)))
        assert labels(index) == EXPECTED
        assert len(pickle.dumps(index)) < 2000

    def test_digest_follows_the_files(self, source: Path) -> None:
        first = opened(source)
        assert opened(source).digest == first.digest
        one = next(path for path in source.rglob("*") if path.is_file())
        os.utime(one, ns=(0, one.stat().st_mtime_ns + 1000))
        assert opened(source).digest != first.digest

    def test_another_chunk_size_is_another_index(self, source: Path) -> None:
        first, second = opened(source), opened(source, chunk_records=3)
        assert second.chunk_sizes.sum() == 12
        assert second.chunk_sizes.max() <= 3
        assert labels(first) == labels(second) == EXPECTED
        assert first.digest == second.digest

    def test_half_written_index_is_made_again(self, source: Path) -> None:
        first = opened(source)
        first.table.with_suffix(".json").unlink()
        first.table.write_bytes(b"cut")
        assert opened(source).chunk_sizes.tolist() == first.chunk_sizes.tolist()

    def test_hidden_files_are_not_seen(self, source: Path) -> None:
        digest = opened(source).digest
        for name in (".DS_Store", "__MACOSX/._x.png"):
            (source / name).parent.mkdir(exist_ok=True)
            (source / name).write_bytes(b"x")
        assert labels(opened(source)) == EXPECTED
        assert opened(source).digest == digest


class TestFolders:
    def test_class_names_are_the_folders(self, tmp_path: Path) -> None:
        assert opened(make_folders(tmp_path / "c")).class_names == CLASSES

    def test_chunks_mix_the_classes(self, tmp_path: Path) -> None:
        index = opened(make_folders(tmp_path / "c", count=60), chunk_records=20)
        for chunk in range(3):
            assert len({record.label for record in index.read_chunk(chunk)}) == 3

    def test_damaged_files_are_counted_by_kind(self, tmp_path: Path) -> None:
        root = make_folders(tmp_path / "c")
        (root / "cat" / "cut.png").write_bytes(noise()[:150])
        (root / "cat" / "text.jpg").write_bytes(b"hello")
        (root / "dog" / "empty.png").write_bytes(b"")
        (root / "stray.png").write_bytes(png(1))
        (root / "README.md").write_text("no record")
        expected = {"good": 12, "truncated_image": 1, "not_an_image": 2, "missing_label": 1}
        assert kinds(opened(root)) == expected

    def test_file_that_vanishes_is_one_bad_record(self, tmp_path: Path) -> None:
        root = make_folders(tmp_path / "c")
        index = opened(root)
        (root / "cat" / "4.png").unlink()
        assert kinds(index) == {"good": 11, "unreadable_file": 1}

    def test_oversized_file_is_not_read(self, tmp_path: Path) -> None:
        root = make_folders(tmp_path / "c")
        with (root / "cat" / "huge.png").open("wb") as file:
            file.truncate(10 * 2**30)  # sparse: takes no space
        assert kinds(opened(root)) == {"good": 12, "too_large": 1}

    def test_five_percent_damaged_is_exactly_that(self, tmp_path: Path) -> None:
        root = make_folders(tmp_path / "c", count=100)
        for number in range(0, 100, 20):
            next(root.rglob(f"{number}.png")).write_bytes(noise()[:150])
        assert kinds(opened(root)) == {"good": 95, "truncated_image": 5}


class TestParquet:
    def test_hugging_face_struct_and_names(self, tmp_path: Path) -> None:
        images: list[dict[str, Any]] = [
            {"bytes": png(number), "path": None} for number in range(12)
        ]
        images[5] = {"bytes": None, "path": "5.png"}
        about = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
        table = pa.table({"image": images, "label": list(EXPECTED.values())})
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
        index = opened(make_parquet(tmp_path / "a.parquet", table))
        assert index.class_names == CLASSES
        assert kinds(index) == {"good": 11, "missing_image": 1}

    @pytest.mark.parametrize("dictionary", [False, True])
    def test_class_names_as_labels(self, tmp_path: Path, dictionary: bool) -> None:
        names = pa.array([CLASSES[number % 3] for number in range(12)])
        names = names.dictionary_encode() if dictionary else names
        table = plain_table(12).set_column(1, "label", names)
        index = opened(make_parquet(tmp_path / "a.parquet", table))
        assert index.class_names == CLASSES
        assert labels(index) == EXPECTED

    def test_bad_labels(self, tmp_path: Path) -> None:
        values = pa.array([0.0, 1.0, None, 2.5, 3.0, -1.0, float("nan"), 2.0])
        table = plain_table(8).set_column(1, "label", values)
        assert kinds(opened(make_parquet(tmp_path / "a.parquet", table))) == {
            "good": 3,
            "missing_label": 1,
            "unreadable_label": 2,
            "label_out_of_range": 2,
        }

    def test_flipped_byte_loses_its_row_group_alone(self, tmp_path: Path) -> None:
        path = make_parquet(tmp_path / "a.parquet")
        index = opened(path)
        data = bytearray(path.read_bytes())
        data[data.index(png(5)) + 50] ^= 1
        path.write_bytes(data)
        assert kinds(index) == {"good": 8, "unreadable_file": 4}

    @pytest.mark.parametrize("kept", [0, 3, 0.5, 0.99])
    def test_cut_file_is_one_bad_record(self, tmp_path: Path, kept: float) -> None:
        make_parquet(tmp_path / "c" / "a.parquet")
        path = make_parquet(tmp_path / "c" / "b.parquet")
        data = path.read_bytes()
        path.write_bytes(data[: int(kept if kept > 1 else kept * len(data))])
        assert kinds(opened(tmp_path / "c")) == {"good": 12, "unreadable_file": 1}

    def test_cut_after_indexing_keeps_the_count(self, tmp_path: Path) -> None:
        path = make_parquet(tmp_path / "a.parquet")
        index = opened(path)
        path.write_bytes(path.read_bytes()[:-100])
        assert kinds(index) == {"unreadable_file": 12}

    @given(
        st.lists(st.integers(1, 40), min_size=1, max_size=8),
        st.integers(1, 30),
    )
    @settings(max_examples=200, deadline=None)
    def test_chunks_cover_every_row_once(self, group_rows: list[int], chunk_records: int) -> None:
        table = TableFile("a", tuple(group_rows))
        chunks = list(list_chunks([table], chunk_records=chunk_records))
        rows = [
            row
            for chunk in chunks
            for entry in chunk.entries
            for row in range(entry.offset, entry.offset + entry.size)
        ]
        assert rows == list(range(sum(group_rows)))
        assert all(0 < chunk.records <= chunk_records for chunk in chunks)

    @pytest.mark.parametrize("group_rows", [1, 3, 5, 12])
    @pytest.mark.parametrize("chunk_records", [1, 4, 7, 100])
    def test_any_grouping_reads_the_same(
        self, tmp_path: Path, group_rows: int, chunk_records: int
    ) -> None:
        path = make_parquet(tmp_path / "a.parquet", group_rows=group_rows)
        index = opened(path, chunk_records=chunk_records)
        assert [record.key for record in decoded(index)] == [f"a.parquet#{n}" for n in range(12)]
        assert labels(index) == EXPECTED

    def test_pattern_chooses_files(self, tmp_path: Path) -> None:
        make_parquet(tmp_path / "c" / "train-0.parquet")
        make_parquet(tmp_path / "c" / "test-0.parquet")
        assert opened(tmp_path / "c").record_count == 24
        assert opened(tmp_path / "c" / "train-*.parquet").record_count == 12

    def test_extension_types_are_refused(self, tmp_path: Path) -> None:
        field = pa.field(
            "label",
            pa.int64(),
            metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object"},
        )
        schema = pa.schema([pa.field("image", pa.binary()), field])
        table = plain_table(12).cast(schema)
        with pytest.raises(UserError, match=r"a\.parquet has columns of an Arrow extension type"):
            opened(make_parquet(tmp_path / "a.parquet", table))


class TestTars:
    def test_members_in_any_order_make_whole_records(self, tmp_path: Path) -> None:
        members = [(f"{n}.png", png(n)) for n in range(12)]
        members += [(f"{n}.cls", b"%d" % (n % 3)) for n in reversed(range(12))]
        assert labels(opened(make_tar(tmp_path / "a.tar", members))) == EXPECTED

    def test_label_column_is_an_extension_and_names_are_classes(self, tmp_path: Path) -> None:
        members = []
        for number in range(12):
            members.append((f"x/{number}.PNG", png(number)))
            members.append((f"x/{number}.kind.txt", CLASSES[number % 3].encode() + b"\n"))
        index = opened(make_tar(tmp_path / "a.tar", members), label_column="kind.txt")
        assert index.class_names == CLASSES
        assert labels(index) == EXPECTED

    def test_bad_records_by_kind(self, tmp_path: Path) -> None:
        path = make_tar(tmp_path / "a.tar")
        with tarfile.open(path, "a") as tar:
            add(tar, "nolabel.png", png(1))
            add(tar, "noimage.cls", b"1")
            add(tar, "range.png", png(1))
            add(tar, "range.cls", b"3")
            add(tar, "word.png", png(1))
            add(tar, "word.cls", b"dog")
            add(tar, "twice.png", png(1))
            add(tar, "twice.png", png(2))
            add(tar, "twice.cls", b"1")
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
            add(tar, "link.cls", b"1")
        assert kinds(opened(path)) == {
            "good": 12,
            "missing_label": 1,
            "missing_image": 2,
            "label_out_of_range": 1,
            "unreadable_label": 1,
            "duplicate_key": 1,
        }

    def test_hostile_names_stay_keys(self, tmp_path: Path) -> None:
        members = [("../../escaped.png", png(7)), ("../../escaped.cls", b"1")]
        members += [("/absolute.png", png(8)), ("/absolute.cls", b"2")]
        before = sorted(tmp_path.parent.rglob("*escaped*"))
        index = opened(make_tar(tmp_path / "c" / "a.tar", members))
        assert labels(index) == {7: 1, 8: 2}
        assert sorted(tmp_path.parent.rglob("*escaped*")) == before
        assert not Path("/absolute.png").exists()

    @pytest.mark.parametrize("where", ["data", "header", "end mark"])
    def test_cut_tar_loses_its_tail_and_says_so(self, tmp_path: Path, where: str) -> None:
        path = make_tar(tmp_path / "c" / "b.tar")
        make_tar(tmp_path / "c" / "a.tar")
        with tarfile.open(path) as tar:
            image = tar.getmembers()[10]
            last = tar.getmembers()[-1]
        ends = {
            "data": image.offset_data + 20,
            "header": image.offset + 100,
            "end mark": last.offset_data + 512,
        }
        path.write_bytes(path.read_bytes()[: ends[where]])
        found = kinds(opened(tmp_path / "c"))
        whole = {"data": 12 + 5, "header": 12 + 5, "end mark": 24}[where]
        assert found["good"] == whole
        assert sum(found.values()) - whole == {"data": 2, "header": 1, "end mark": 1}[where]

    def test_broken_header_in_the_middle_is_not_silent(self, tmp_path: Path) -> None:
        path = make_tar(tmp_path / "a.tar")
        with tarfile.open(path) as tar:
            header = tar.getmembers()[10].offset
        data = bytearray(path.read_bytes())
        data[header + 3] ^= 1
        path.write_bytes(data)
        assert kinds(opened(path)) == {"good": 5, "unreadable_file": 1}

    def test_giant_members_are_neither_stored_nor_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar"
        huge = 10 * 2**30
        with tarfile.open(path, "w") as tar:
            add(tar, "0.png", png(0))
            add(tar, "0.cls", b"0")
            add(tar, "big.cls", b"1")
            member = tarfile.TarInfo("big.png")
            member.size = huge
            header = member.tobuf(tarfile.GNU_FORMAT)
        with path.open("r+b") as file:
            end = 512 * 6  # two headers with data, one more
            file.seek(end)
            file.write(header)
            file.truncate(end + 512 + huge + 1024)  # sparse: takes no space
        assert kinds(opened(path)) == {"good": 1, "too_large": 1}

    def test_giant_pax_header_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "c" / "b.tar"
        make_tar(tmp_path / "c" / "a.tar")
        member = tarfile.TarInfo("pax")
        member.type, member.size = tarfile.XHDTYPE, 8 * 2**30
        with path.open("wb") as file:
            file.write(member.tobuf())
            file.truncate(8 * 2**30)
        assert kinds(opened(tmp_path / "c")) == {"good": 12, "unreadable_file": 1}

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("0001.jpg", ("0001", "jpg")),
            ("a.b/0001.seg.PNG", ("a.b/0001", "seg.png")),
            ("noext", ("noext", "")),
        ],
    )
    def test_names_divide_at_the_first_dot(self, name: str, expected: tuple[str, str]) -> None:
        assert split_name(name) == expected

    def test_agrees_with_the_webdataset_package(self, tmp_path: Path) -> None:
        webdataset = pytest.importorskip("webdataset")
        path = make_tar(tmp_path / "a.tar")
        theirs = webdataset.WebDataset(str(path), shardshuffle=False)
        expected = {f"a.tar#{sample['__key__']}": sample["png"] for sample in theirs}
        index = opened(path)
        ours = {r.key: r.data for chunk in range(3) for r in index.read_chunk(chunk)}
        assert ours == expected


class TestClearErrors:
    def refused(self, source: object, **fields: object) -> str:
        with pytest.raises(UserError) as caught:
            opened(source, **fields)
        sentence = str(caught.value)
        assert "\n" not in sentence
        return sentence

    @pytest.mark.parametrize("source", ["/no/such/folder", "file:///no/such", "memory://no/such"])
    def test_missing_corpus(self, source: str) -> None:
        sentence = self.refused(source)
        assert source in sentence
        assert "is not there" in sentence

    def test_unknown_protocol(self) -> None:
        assert "cannot be reached" in self.refused("quux://bucket/images")

    def test_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "c" / "notes").mkdir(parents=True)
        (tmp_path / "c" / "notes" / "a.txt").write_text("x")
        assert "holds no images in class folders" in self.refused(tmp_path / "c")

    def test_images_without_class_folders(self, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "a.png").write_bytes(png(1))
        assert "CLASS/IMAGE" in self.refused(tmp_path / "c")

    @pytest.mark.parametrize("hold", [[], ["notes.txt"]])
    def test_empty_class_folder_is_named(self, tmp_path: Path, hold: list[str]) -> None:
        root = make_folders(tmp_path / "c")
        (root / "emu").mkdir()
        for name in hold:
            (root / "emu" / name).write_text("x")
        assert "class folder 'emu'" in self.refused(root, classes=4)

    def test_number_of_class_folders(self, tmp_path: Path) -> None:
        sentence = self.refused(make_folders(tmp_path / "c"), classes=10)
        assert "has 3 class folders (bird, cat, dog) but corpus.classes is 10" in sentence
        assert "set corpus.classes: 3" in sentence

    def test_missing_column_names_the_nearest(self, tmp_path: Path) -> None:
        path = make_parquet(tmp_path / "a.parquet", plain_table(4).rename_columns(["img", "label"]))
        sentence = self.refused(path)
        assert "no column 'image'; nearest is 'img'" in sentence
        assert "set corpus.image_column" in sentence

    @pytest.mark.parametrize("setting", ["image", "label"])
    def test_column_of_another_type(self, tmp_path: Path, setting: str) -> None:
        position = ("image", "label").index(setting)
        table = plain_table(2).set_column(position, setting, pa.array([[1], [2]]))
        sentence = self.refused(make_parquet(tmp_path / "a.parquet", table))
        assert f"column '{setting}' of a.parquet is list<" in sentence

    def test_layout_that_cannot_be_guessed(self, tmp_path: Path) -> None:
        root = make_folders(tmp_path / "c")
        make_parquet(root / "a.parquet")
        sentence = self.refused(root)
        assert "cannot be guessed: it holds image files, parquet" in sentence
        assert labels(opened(root, layout="parquet")) == EXPECTED

    def test_layout_that_is_not_there(self, tmp_path: Path) -> None:
        assert "holds no .tar files" in self.refused(
            make_folders(tmp_path / "c"), layout="webdataset"
        )

    def test_compressed_tars(self, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "a.tar.gz").write_bytes(b"x")
        assert "cannot be read by offset" in self.refused(tmp_path / "c")

    def test_all_files_broken(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
        assert "no readable Parquet file" in self.refused(tmp_path / "a.parquet")

    def test_refused_corpus_leaves_no_index(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(b"")
        found = kinds(opened(tmp_path / "a.tar"))
        assert found == {"unreadable_file": 1}
        self.refused("/no/such/folder")
        assert len(list((tmp_path / "home" / "indexes").iterdir())) == 2


def test_network_errors_are_not_bad_records(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/net/cat/a.png", png(1))
    remote, local = locate("memory://net"), locate(str(tmp_path))
    assert not is_lost(OSError("connection reset"), remote)
    assert is_lost(OSError("input/output error"), local)
    assert is_lost(OSError("CRC checksum verification failed"), remote)
    assert is_lost(FileNotFoundError("gone"), remote)
    assert not is_lost(TypeError("a mistake of ours"), local)
