"""Corpora in tars, whole and damaged, and the errors that a user can mend."""

import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from latentlm_platform.corpora.tar_shards import split_name
from latentlm_platform.errors import UserError
from making_corpora import (
    CLASSES,
    EXPECTED,
    add,
    image_bytes,
    kinds,
    labels,
    make_folders,
    make_parquet,
    make_tar,
    opened,
    plain_table,
    png,
)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))


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
        ours = {r.key: image_bytes(r) for chunk in range(3) for r in index.read_chunk(chunk)}
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
        assert len(list((tmp_path / "home" / "indexes").iterdir())) == 1
