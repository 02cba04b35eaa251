"""Public corpora by name: `corpus.source: fashion_mnist/train`. Fetched once, with their licence.

A corpus becomes visible whole: it is made in a folder beside its place and renamed into it.
"""

import datetime
import difflib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from latentlm_platform.corpora import fashion_mnist, noto_emoji
from latentlm_platform.corpora.debian_packages import Package, unpack_package
from latentlm_platform.corpora.split_files import Image, write_split
from latentlm_platform.errors import UserError
from latentlm_platform.home import corpora_folder

Progress = Callable[[str], None]


class NamedCorpus(NamedTuple):
    """Where a public corpus comes from and how it is read from its unpacked packages."""

    what: str
    licence: str
    origin: str
    packages: tuple[str, ...]
    splits: tuple[str, ...]
    class_names: tuple[str, ...]
    read_split: Callable[[Path, str], Iterator[Image]]


CORPORA = {
    "fashion_mnist": NamedCorpus(
        what="70,000 grey 28 × 28 pictures of clothing, ten balanced classes",
        licence="MIT (Expat)",
        origin="https://github.com/zalandoresearch/fashion-mnist",
        packages=("dataset-fashion-mnist",),
        splits=("train", "test"),
        class_names=fashion_mnist.CLASS_NAMES,
        read_split=fashion_mnist.read_split,
    ),
    "noto_emoji_groups": NamedCorpus(
        what="about 1,870 colour emoji, 128 × 128, nine Unicode groups of unequal size",
        licence="SIL OFL 1.1 (font), Unicode licence (names and groups)",
        origin="https://github.com/googlefonts/noto-emoji",
        packages=("fonts-noto-color-emoji", "unicode-data"),
        splits=("train", "test"),
        class_names=noto_emoji.CLASS_NAMES,
        read_split=noto_emoji.read_split,
    ),
}


def is_fetched(name: str) -> bool:
    """Whether the corpus lies whole in the corpora folder."""
    return (corpora_folder() / name / "corpus.json").is_file()


def read_card(name: str) -> dict[str, Any]:
    """What was recorded when the corpus was fetched: licence, hashes, counts, date."""
    card = (corpora_folder() / name / "corpus.json").read_text(encoding="utf-8")
    fields: dict[str, Any] = json.loads(card)
    return fields


def resolve(source: str) -> str:
    """The folder of `NAME/SPLIT`; any other source as it is. Nothing is fetched."""
    name, _, split = source.strip("/").partition("/")
    if "://" in source or Path(source).expanduser().exists():
        return source
    if name not in CORPORA:
        near = difflib.get_close_matches(name, CORPORA, 1, cutoff=0.7)
        if near and not source.startswith(("/", ".", "~")):
            raise UserError(
                f"corpus source {source!r} is neither a folder here nor a public corpus;"
                f" did you mean {near[0]}/{split or 'train'}?"
            )
        return source
    splits = CORPORA[name].splits
    if split not in splits:
        near = difflib.get_close_matches(split, splits, 1) or list(splits)
        choice = " or ".join(f"{name}/{part}" for part in near)
        raise UserError(f"corpus source {source!r} names no split of {name}; write {choice}")
    return str(corpora_folder() / name / split)


def ensure(source: str, *, progress: Progress = print) -> str:
    """`resolve`, and fetch the named corpus first where it is missing."""
    name = source.strip("/").partition("/")[0]
    folder = resolve(source)
    if folder != source and not is_fetched(name):
        fetch(name, progress=progress)
    return folder


def fetch(name: str, *, progress: Progress = print) -> dict[str, Any]:
    """Bring a named corpus into the corpora folder; its card. A fetched one is left as it is."""
    if name not in CORPORA:
        near = difflib.get_close_matches(name, CORPORA, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CORPORA)}"
        raise UserError(f"no public corpus is called {name!r}; {hint}")
    if is_fetched(name):
        return read_card(name)
    corpora_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=corpora_folder()) as folder:
        made = Path(folder) / "made"
        _make(name, Path(folder), made, progress)
        _publish(made, corpora_folder() / name)
    return read_card(name)


def _make(name: str, work: Path, made: Path, progress: Progress) -> None:
    corpus = CORPORA[name]
    unpacked = work / "unpacked"
    unpacked.mkdir()
    made.mkdir()
    packages = []
    for package in corpus.packages:
        progress(f"{name}: downloading the Debian package {package} ({corpus.licence})")
        packages.append(unpack_package(package, into=unpacked, work=work / "downloads"))
    for package in corpus.packages:
        licence = unpacked / "usr/share/doc" / package / "copyright"
        shutil.copyfile(licence, made / f"LICENCE.{package}.txt")
    splits = {}
    for split in corpus.splits:
        progress(f"{name}: converting {split}")
        images = corpus.read_split(unpacked, split)
        splits[split] = write_split(made / split, images, class_names=corpus.class_names)
    card = _card(name, packages, splits)
    (made / "corpus.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _card(name: str, packages: list[Package], splits: dict[str, Any]) -> dict[str, Any]:
    corpus = CORPORA[name]
    return {
        "name": name,
        "what": corpus.what,
        "licence": corpus.licence,
        "origin": corpus.origin,
        "packages": [{**p._asdict(), "version": p.version} for p in packages],
        "splits": splits,
        "class_names": list(corpus.class_names),
        "fetched": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _publish(made: Path, place: Path) -> None:
    """Rename into place; when another process was faster, its copy stays."""
    if place.exists() and not (place / "corpus.json").is_file():
        place.rename(made.parent / "incomplete")  # goes with the temporary folder
    try:
        made.rename(place)
    except OSError:
        if not (place / "corpus.json").is_file():
            raise
