"""`latentlm sample`: parts in their order, classes by name, what a model does not know."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentlm.media import decode_wav, encode_png, encode_wav, read_png
from latentlm_platform import cli
from making_exports import make_export

NAMES = ("Trouser", "Bag", "tench, Tinca tinca")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    made = {kind: make_export(folder, kind) for kind in ("dit", "text", "speech")}
    named = make_export(folder, "classes", class_names=NAMES)
    return made | {"classes": named}


class Sampling:
    """Runs the command as a person does."""

    def __init__(self, folder: Path, exports: dict[str, Path]) -> None:
        self.folder, self.exports = folder, exports
        self.out = folder / "out.png"

    def __call__(self, kind: str, *arguments: str, count: int = 2) -> tuple[int, dict[str, Any]]:
        report = self.folder / "report.json"
        fixed = ("--steps", "2", "--count", str(count), "--length", "8", "--out", str(self.out))
        command = ["sample", str(self.exports[kind]), *arguments, *fixed, "--json", str(report)]
        return cli.main(command), json.loads(report.read_text())

    def picture(self) -> np.ndarray[Any, Any]:
        return read_png(self.out.read_bytes())


@pytest.fixture
def sample(tmp_path: Path, exports: dict[str, Path]) -> Sampling:
    (tmp_path / "cat.png").write_bytes(encode_png(np.full((20, 30, 3), 90, np.uint8)))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    tone = np.sin(np.arange(1600) / 5).astype(np.float32)
    (tmp_path / "tone.wav").write_bytes(encode_wav(tone, rate_hz=16_000))
    return Sampling(tmp_path, exports)


def test_parts_keep_the_order_of_the_command_line() -> None:
    line = "sample x --prompt a --image b --class 3 --count 1 --prompt c --sound d"
    found = cli.parser().parse_args(line.split())
    assert found.parts == (
        ("prompt", "a"), ("image", "b"), ("class", "3"), ("prompt", "c"), ("sound", "d"),
    )  # fmt: skip
    assert cli.parser().parse_args(["sample", "x"]).parts == ()


def test_classes_by_name_and_number_are_a_row_each(sample: Sampling) -> None:
    code, report = sample("classes", "--class", "bag,0", "--class", NAMES[2])
    assert (code, report["classes"], report["images"]) == (0, [1, 0, 2], 6)
    assert report["class_names"] == ["Bag", "Trouser", NAMES[2]]
    named = sample.picture()
    assert sample("classes", "--class", "1", "--class", "0,2")[0] == 0
    assert np.array_equal(sample.picture(), named)
    assert sample("classes")[1]["classes"] == [0, 1, 2]
    assert not np.array_equal(sample.picture(), named)
    assert sample("classes", "--prompt", "Bag")[1]["classes"] == [1]


@pytest.mark.parametrize(
    ("kind", "parts", "words"),
    [
        ("classes", ["--class", "bags"], "--class bags is not a class; did you mean Bag?"),
        ("classes", ["--class", "zzz"], "--class zzz is not a class; its classes are Trouser"),
        ("classes", ["--class", "0,11"], "--class 11 is not a class; this model knows 0 … 2"),
        ("dit", ["--class", "Bag"], "numbers from 0 to 2, this export has no class names"),
        ("classes", ["--class", "1", "--class", "0", "--prompt", "Bag"], "3 class labels came"),
        ("classes", ["--class", "1", "--prompt", "red"], "class labels only, not 'red'"),
        ("dit", ["--image", "cat.png"], "knows class labels only, not 'a signal'"),
        ("dit", ["--sound", "tone.wav"], "this model's codec is of images"),
        ("text", ["--class", "3"], "this model has no classes, it reads text; use --prompt"),
        ("text", ["--image", "broken.png"], "broken.png is no usable image"),
        ("text", ["--image", "nowhere.png"], "nowhere.png cannot be read: No such file"),
        ("speech", ["--image", "cat.png"], "this model's codec is of sounds"),
        ("speech", ["--sound", "cat.png"], "no PCM WAV file"),
        ("text", [], "this model answers a prompt; give --prompt TEXT"),
    ],
)
def test_what_cannot_be_sampled_is_one_sentence(
    sample: Sampling,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    parts: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(sample.folder)
    code, report = sample(kind, *parts)
    assert code == 2
    assert words in report["error"]
    assert not sample.out.exists()


def test_a_model_with_text_answers_a_prompt_of_parts(
    sample: Sampling, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = ("--image", str(sample.folder / "cat.png"))
    code, after = sample("text", *picture, "--prompt", "What is it?", count=3)
    assert code == 0
    assert len(after["texts"]) == 3
    printed = capfd.readouterr().out
    assert all(text in printed for answer in after["texts"] for text in answer)
    assert sample("text", *picture, "--prompt", "What is it?", count=3)[1] == after
    before = sample("text", "--prompt", "What is it?", *picture, count=3)[1]
    assert before["texts"] != after["texts"]


def test_a_sound_of_another_rate_is_a_part_too(sample: Sampling) -> None:
    tone = sample.folder / "tone.wav"
    assert len(decode_wav(tone.read_bytes(), rate_hz=8000)) == 800
    code, report = sample("speech", "--sound", str(tone), "--prompt", "say it", count=1)
    assert code == 0
    assert len(report["texts"]) == 1
    assert report["sounds"] == len(list(sample.folder.glob("out-*.wav")))
