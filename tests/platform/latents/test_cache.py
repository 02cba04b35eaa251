"""What goes into the latent cache comes out: ragged, by memory map, whole or not at all."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from latentlm_platform.errors import UserError
from latentlm_platform.latents import cache as caching
from latentlm_platform.latents.cache import LatentCache, old_caches
from latentlm_platform.latents.encoded import EncodedChunk
from making_chunks import BAD, WIDTH, chunk_of, image, label, same_chunk, side_names, sound, text

RECORDS = [
    [label(2), image(3)],
    BAD,
    [text(5, 6, 7, scored=False), image(2), text(8), image(4, scored=False)],
    [text(9)],
    [sound(1), sound(7)],
    BAD,
]
KEYS = [f"record {number}" for number in range(len(RECORDS))]


@pytest.fixture
def cache(tmp_path: Path) -> LatentCache:
    caching._open_shard.cache_clear()
    return LatentCache(tmp_path / "cache", WIDTH)


def write(cache: LatentCache, chunk: EncodedChunk) -> Path:
    cache.write_chunk("train", 7, chunk, keys=KEYS)
    return cache.shard_path("train", 7)


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("with_std", [False, True])
def test_ragged_chunks_come_back_to_the_last_bit(
    cache: LatentCache, sides: int, with_std: bool
) -> None:
    chunk = chunk_of(RECORDS, first_id=100, sides=sides, with_std=with_std)
    write(cache, chunk)
    found = cache.read_chunk("train", 7)
    assert same_chunk(found, chunk)
    assert found.ids.tolist() == list(range(100, 106))
    assert (len(found), found.good) == (6, 4)
    assert [found.usable(row) for row in range(6)] == [True, False, True, True, True, False]
    assert len(found.std) == (sides if with_std else 0)


def test_a_row_is_its_parts(cache: LatentCache) -> None:
    chunk = chunk_of(RECORDS, sides=2, with_std=True)
    write(cache, chunk)
    found = cache.read_chunk("train", 7)
    assert found.parts(1) == found.parts(5) == ()
    for mirrored in (False, True):
        mean, std = chunk.mean[mirrored], chunk.std[mirrored]
        words, first, second, third = (found.parts(2, mirrored=mirrored)[i] for i in (0, 1, 2, 3))
        assert words.words is not None
        assert third.mean_NZ is not None
        assert words.words.tolist() == [5, 6, 7]
        assert (words.scored, first.scored, second.scored, third.scored) == (
            *(False, True, True, False),
        )
        assert np.array_equal(first.mean_NZ, mean[3:5])
        assert np.array_equal(third.mean_NZ, mean[5:9])
        assert np.array_equal(third.std_NZ, std[5:9])
        assert [
            len(part.words if part.mean_NZ is None else part.mean_NZ) for part in found.parts(2)
        ] == [3, 2, 1, 4]
        assert np.array_equal(found.parts(4, mirrored=mirrored)[1].mean_NZ, mean[10:17])


def test_a_chunk_of_one_orientation_gives_it_for_either(cache: LatentCache) -> None:
    chunk = chunk_of(RECORDS)
    ours, turned = (chunk.parts(0, mirrored=mirrored)[1].mean_NZ for mirrored in (False, True))
    assert np.array_equal(ours, turned)


def test_chunks_without_latents_and_chunks_of_bad_records(cache: LatentCache) -> None:
    for number, records in enumerate(([[text(1)], [text(2, 3)]], [BAD, BAD])):
        chunk = chunk_of(records, with_std=True)
        cache.write_chunk("held_out", number, chunk, keys=["a", "b"])
        assert same_chunk(cache.read_chunk("held_out", number), chunk)


def test_arrays_are_views_of_the_file(cache: LatentCache) -> None:
    path = write(cache, chunk_of(RECORDS, sides=2, with_std=True))
    found = cache.read_chunk("train", 7)
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path))
    ]
    assert mapped
    arrays = found.arrays()
    assert set(side_names("mean", 2) + side_names("std", 2)) <= arrays.keys()
    for name, array in arrays.items():
        address = array.__array_interface__["data"][0]
        assert any(first <= address < last for first, last in mapped), name
        assert not array.flags.writeable
    part = found.parts(0)[1]
    assert np.shares_memory(part.mean_NZ, found.mean[0])  # type: ignore[arg-type]


def test_a_row_does_not_touch_its_neighbours(cache: LatentCache) -> None:
    """A record's latents stay what they are where all others are damaged on disk."""
    chunk = chunk_of([[image(600)] for _ in range(6)])
    path = write(cache, chunk)
    data = path.read_bytes()
    start = data.index(chunk.mean[0].tobytes())
    own = slice(start + 2 * 600 * WIDTH * 4, start + 3 * 600 * WIDTH * 4)
    damaged = bytearray(data)
    damaged[start : start + chunk.mean[0].nbytes] = bytes(chunk.mean[0].nbytes)
    damaged[own] = data[own]
    path.write_bytes(damaged)
    found = cache.read_chunk("train", 7)
    assert np.array_equal(found.parts(2)[0].mean_NZ, chunk.parts(2)[0].mean_NZ)
    assert not np.any(found.parts(3)[0].mean_NZ)


def test_a_cut_shard_is_named_in_one_sentence(cache: LatentCache) -> None:
    path = write(cache, chunk_of(RECORDS, sides=2))
    whole = path.read_bytes()
    for size in (0, 1, 7, 100, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        told = rf"{path} cannot be read \(.*\); remove the folder {cache.folder} and run again to"
        with pytest.raises(UserError, match=told):
            cache.read_chunk("train", 7)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        cache.read_chunk("train", 7)


def test_a_damaged_shard_is_named_or_has_other_numbers(cache: LatentCache) -> None:
    """Whatever bit is turned: a sentence, or a chunk of the same shape; never another error."""
    chunk = chunk_of(RECORDS, sides=2, with_std=True)
    path = write(cache, chunk)
    whole, named = path.read_bytes(), 0
    random = np.random.default_rng(0)
    for place in random.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        caching._open_shard.cache_clear()
        try:
            found = cache.read_chunk("train", 7)
        except UserError as error:
            assert "cannot be read" in str(error)  # noqa: PT017
            named += 1
        else:
            assert len(found) == len(chunk)
            for row in range(len(found)):
                found.parts(row, mirrored=True)
    assert named > 20


def test_latents_of_another_width_are_no_shard_of_this_cache(cache: LatentCache) -> None:
    write(cache, chunk_of(RECORDS))
    with pytest.raises(UserError, match="cannot be read"):
        LatentCache(cache.folder, WIDTH - 1).read_chunk("train", 7)


def test_a_shard_appears_whole_or_not_at_all(
    cache: LatentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that looks all the time sees no half shard, nor does a writer that ends early leave
    one."""
    chunk = chunk_of([[text(*range(400)), image(400)] for _ in range(6)])
    path, stop, sizes = cache.shard_path("train", 7), threading.Event(), set()

    def look() -> None:
        while not stop.is_set():
            if path.exists():
                sizes.add(path.stat().st_size)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(20):
        write(cache, chunk)
    stop.set()
    thread.join()
    assert sizes == {path.stat().st_size}
    path.unlink()

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", end)
    with pytest.raises(KeyboardInterrupt):
        write(cache, chunk)
    assert not path.exists()
    assert not cache.has_chunk("train", 7)


def test_a_chunk_is_there_when_its_report_is(cache: LatentCache) -> None:
    write(cache, chunk_of(RECORDS))
    assert not cache.has_chunk("train", 7)
    cache.write_report("train", 7, {"rows": 4, "bad": {"counts": {"x": {"": 2}}}})
    assert cache.has_chunk("train", 7)
    assert not cache.has_chunk("held_out", 7)
    assert cache.read_report("train", 7)["rows"] == 4
    assert not list(cache.folder.rglob("*.partial"))


def test_bad_records_of_chunks_that_are_kept_and_of_those_that_are_not(cache: LatentCache) -> None:
    states = [{"counts": {kind: {"dog": 1}}, "examples": []} for kind in ("a", "b", "c")]
    cache.write_report("train", 7, {"bad": states[0]})
    cache.write_report("held_out", 7, {"bad": states[1]})
    cache.note_bad(4, states[2])
    cache.note_bad(4, states[0])  # the next epoch: once only
    cache.note_bad(7, states[0])  # whose report tells it
    cache.note_bad(3, {"counts": {}, "examples": []})
    told = sorted(kind for state in cache.bad_states() for kind in state["counts"])
    assert told == ["a", "b", "c"]


def test_old_caches_are_told_from_those_that_can_be_read(tmp_path: Path) -> None:
    ours = LatentCache(tmp_path / "new", WIDTH)
    assert (ours.summary(), old_caches(tmp_path)) == (None, 0)
    ours.folder.mkdir()
    ours.commit({"records": 2})
    summary = ours.summary()
    assert summary is not None
    assert summary["records"] == 2
    assert old_caches(tmp_path) == 0
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / caching.SUMMARY).write_text(json.dumps({"rows": {"train": [2]}}))
    assert old_caches(tmp_path) == 2
