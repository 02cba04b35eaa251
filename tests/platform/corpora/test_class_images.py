"""Corpora in folders and Parquet, whole and damaged: each record is good or bad with one kind, and
the count never changes."""

import json
import os
import pickle
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm_platform.corpora.locating import is_lost, locate
from latentlm_platform.corpora.parquet_footers import TableFile, list_chunks
from latentlm_platform.errors import UserError
from making_corpora import (
    CLASSES,
    EXPECTED,
    decoded,
    kinds,
    labels,
    make_folders,
    make_parquet,
    make_tar,
    noise,
    opened,
    plain_table,
    png,
)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))


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

    def test_fsspec_uri_is_the_same(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import fsspec  # type: ignore[import-untyped]

        monkeypatch.delitem(sys.modules, "ray", raising=False)  # this memory is this process's
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
        is_parquet = (source / "train.parquet").exists()  # whose row groups of 4 stay whole
        assert second.chunk_sizes.max() == (4 if is_parquet else 3)
        assert labels(first) == labels(second) == EXPECTED
        assert first.digest == second.digest

    def test_half_written_index_is_made_again(self, source: Path) -> None:
        first = opened(source)
        (first.folder / "index.json").unlink()
        (first.folder / "chunks.arrow").write_bytes(b"cut")
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
            assert len({record.group for record in index.read_chunk(chunk)}) == 3

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
    def test_chunks_are_whole_groups_and_cover_every_row_once(
        self, group_rows: list[int], chunk_records: int
    ) -> None:
        table = TableFile("a", tuple(group_rows), pa.nulls(sum(group_rows)))
        chunks = list(list_chunks(table, chunk_records=chunk_records))
        edges = [0]
        for chunk in chunks:
            first, count = chunk.entries.column("ranges").to_pylist()[0]
            assert (first, count) == (edges[-1], chunk.records) == (edges[-1], len(chunk.labels))
            edges.append(first + count)
        ends = set(np.cumsum(group_rows).tolist())
        assert edges[-1] == sum(group_rows)
        cut = [edge for edge in edges[1:] if edge not in ends]
        assert all(max(group_rows) > 8 * chunk_records for _ in cut)
        joined = [b - a for a, b in pairwise(edges) if len(ends & set(range(a + 1, b + 1))) > 1]
        assert all(size <= chunk_records for size in joined)
        assert all(chunk.records <= 8 * chunk_records for chunk in chunks)

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


def test_network_errors_are_not_bad_records(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/net/cat/a.png", png(1))
    remote, local = locate("memory://net"), locate(str(tmp_path))
    assert not is_lost(OSError("connection reset"), remote)
    assert is_lost(OSError("input/output error"), local)
    assert is_lost(OSError("CRC checksum verification failed"), remote)
    assert is_lost(FileNotFoundError("gone"), remote)
    assert not is_lost(TypeError("a mistake of ours"), local)
