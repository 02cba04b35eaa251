"""`latentlm.load(folder).generate`: parts in, parts out, seeded by row; the README's examples."""

import re
from pathlib import Path

import numpy as np
import pytest

import latentlm
from latentlm.load import Loaded
from latentlm.sequence import LATENT
from latentlm.settings import SamplerSettings
from making_exports import make_export

README = Path(__file__).parents[2] / "latentlm" / "README.md"
FAST = SamplerSettings(steps=2, cfg_scale=2.0)


def load(folder: Path, kind: str) -> Loaded:
    loaded: Loaded = latentlm.load(make_export(folder, kind))  # type: ignore[operator]
    return loaded


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 1)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["classes", "dit", "codes"])
def test_classes_in_pictures_out_and_rows_are_seeded_alone(tmp_path: Path, kind: str) -> None:
    loaded = load(tmp_path, kind)
    found = loaded.generate([[2], [0], [2]], sampler=FAST, seed=5)
    assert [[part.shape for part in row] for row in found] == [[(8, 8, 1)]] * 3  # type: ignore
    alone = loaded.generate([[2], [0]], sampler=FAST, seed=5)
    np.testing.assert_array_equal(found[1][0], alone[1][0])
    assert not np.array_equal(found[0][0], found[2][0])
    other = loaded.generate([[2]], sampler=FAST, seed=6)
    assert not np.array_equal(found[0][0], other[0][0])


def test_a_dit_is_guided_by_row_and_cannot_stream(tmp_path: Path) -> None:
    loaded = load(tmp_path, "dit")
    plain, guided = (
        loaded.generate([[2], [2]], sampler=FAST, cfg_scales=scales)
        for scales in ([1.0, 1.0], [1.0, 4.0])
    )
    np.testing.assert_array_equal(plain[0][0], guided[0][0])
    assert not np.array_equal(plain[1][0], guided[1][0])
    with pytest.raises(ValueError, match="a dit gives a picture's latents at once"):
        loaded.generate([[2]], sampler=FAST, on_step=lambda step: None)
    with pytest.raises(ValueError, match="1 labels came with 2 guidance scales"):
        loaded.generate([[2]], sampler=FAST, cfg_scales=[1.0, 2.0])


def test_text_and_pictures_in_and_out(tmp_path: Path) -> None:
    loaded = load(tmp_path, "text")
    prompts = [["a cat"], ["see ", picture(), " and say"]]
    asked = loaded.generate(prompts, ask_signal=True, sampler=FAST, capacity=12)
    for row in asked:
        assert isinstance(row[0], np.ndarray)
        assert row[0].shape == (8, 8, 1)
    told = loaded.generate(prompts, sampler=FAST, capacity=6)
    assert all(isinstance(part, str) for row in told for part in row)
    changed = [prompts[0], ["see ", picture(1), " and say"]]
    again = loaded.generate(changed, ask_signal=True, sampler=FAST, capacity=12)
    np.testing.assert_array_equal(again[0][0], asked[0][0])
    assert not np.array_equal(again[1][0], asked[1][0])
    reseeded = loaded.generate(prompts, ask_signal=True, sampler=FAST, capacity=12, seed=1)
    assert not np.array_equal(reseeded[1][0], asked[1][0])
    cut = loaded.generate(prompts, ask_signal=True, sampler=FAST, capacity=3)
    assert cut == [[], []]  # no whole picture, and no error that loses the other rows


def test_text_in_sound_out_while_it_is_drawn(tmp_path: Path) -> None:
    loaded = load(tmp_path, "speech")
    stream, heard = loaded.codec.stream_decoder(batch=1), []  # type: ignore[union-attr]

    def hear(step) -> None:  # type: ignore[no-untyped-def]
        if int(step.ids_E[0]) == LATENT:
            heard.append(stream.push(loaded.codec.denormalise(step.latents_EZ[:, None])))

    ((sound, *_),) = loaded.generate(
        [["hi"]], ask_signal=True, sampler=FAST, capacity=6, on_step=hear
    )
    assert isinstance(sound, np.ndarray)
    assert sound.dtype == np.float32
    whole = np.concatenate([part[0].numpy() for part in heard])
    np.testing.assert_allclose(whole[: len(sound)], sound, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "prompt", "words"),
    [
        ("classes", [3], "3 is not a class; this model knows 0 to 2"),
        ("classes", ["cat"], "this model knows class labels only, not 'cat'"),
        ("classes", [], "a prompt has no elements"),
        ("text", "a cat", "a prompt is a list of parts, not 'a cat'"),
        ("classes", 0, "a prompt is a list of parts, not '0'"),
        ("classes", [1, 2], "2 class labels came for one picture"),
        ("dit", [picture()], "this model knows class labels only, not 'a signal'"),
        ("dit", [3], "3 is not a class; this model knows 0 to 2"),
        ("text", [np.zeros((8, 8, 1), np.float32)], "is neither a picture (uint8"),
        ("text", [1], "1 is a class label, but this model reads text"),
        ("text", [np.zeros((9, 9, 1), np.uint8)], "(1, 9, 9), but this codec was built for"),
    ],
)
def test_parts_that_a_model_does_not_know(
    tmp_path: Path, kind: str, prompt: list, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        load(tmp_path, kind).generate([prompt], sampler=FAST)


def test_a_class_is_named_where_the_export_has_names(tmp_path: Path) -> None:
    names = ("Trouser", "Bag", "bag")
    export = make_export(tmp_path, "classes", class_names=names)
    loaded = latentlm.load(export)  # type: ignore[operator]
    assert loaded.class_names == names
    for prompt, label in ((["Bag"], 1), (["bag"], 2), (["TROUSER"], 0)):
        (named,) = loaded.generate([prompt], sampler=FAST)
        (numbered,) = loaded.generate([[label]], sampler=FAST)
        np.testing.assert_array_equal(named[0], numbered[0])
    for given, said in (
        ("Trousers", "not 'Trousers'; did you mean Trouser?"),
        ("BAG", "not 'BAG'; did you mean"),  # which of the two it is, nobody knows
        ("xyz", "not 'xyz'; its classes are Trouser, Bag, bag"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            loaded.generate([[given]], sampler=FAST)
    assert load(tmp_path / "nameless", "classes").class_names == ()


def test_as_many_names_as_classes_or_none(tmp_path: Path) -> None:
    export = make_export(tmp_path, "classes", class_names=("one", "two"))
    with pytest.raises(ValueError, match="names 2 classes, the model knows 3"):
        latentlm.load(export)  # type: ignore[operator]


def test_the_readmes_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("classes", "text", "speech"):
        make_export(tmp_path, kind)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})
