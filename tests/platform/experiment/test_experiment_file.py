"""Experiment files: merging, overrides, and every mistake at once at its place."""

import contextlib
import copy
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentlm_platform.errors import UserError
from latentlm_platform.experiment.files import (
    experiment_key,
    load_experiment,
    resolved_yaml,
    source_text,
)
from latentlm_platform.experiment.json_schema import every_path, keys_at
from latentlm_platform.experiment.points import sweep_points
from latentlm_platform.located_yaml import dump_yaml, parse_yaml

WHOLE = """\
name: whole
corpus: {source: some/folder, classes: 10, image_size: 32, channels: 1}
codec:
  patch_size: 8
  latent_width: 16
  encoder: {width: 64, depth: 1, heads: 4}
  decoder: {width: 64, depth: 1, heads: 4}
  variance: {kind: half_normal, c_sigma: 0.25}
  training: {steps: 10, batch_size: 8, optimizer: {learning_rate: 1e-3}}
model:
  width: 64
  depth: 2
  heads: 4
  ffn_width: 128
  head: {ffn_width: 128}
train:
  steps: 20
  batch_size: 8
  optimizer: {learning_rate: 1e-3}
"""

TEN_MISTAKES = """\
name: ten mistakes
corpus: {source: some/folder, classes: 10, image_size: 30, channels: 1}
codec:
  patch_size: 8
  latent_width: 16
  encoder: {width: 64, depth: 1, heads: 4}
  decoder: {width: 64, depth: 1, heads: 4}
  variance: {kind: half_normal}
  training: {steps: 10, batch_size: 8, optimizer: {learning_rate: fast}}
model:
  width: 1000
  depth: true
  heads: 12
  head: {ffn_width: 128}
  zero: {stage: 1}
latents: {mode: cashed}
train:
  steps: -5
  batch_size: 9
  workers: 2
  wrokers: 2
  optimizer: {learning_rate: 1e-3}
  precision: fp32
  precision: bf16
"""


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.yaml"
    path.write_text(WHOLE)
    return path


def problems_of(path: Path, *overrides: str) -> list[dict[str, Any]]:
    with pytest.raises(UserError) as caught:
        load_experiment(path, overrides=overrides)
    assert caught.value.exit_code == 2
    problems: list[dict[str, Any]] = caught.value.report["problems"]
    return problems


def message_of(path: Path, *overrides: str) -> str:
    (problem,) = problems_of(path, *overrides)
    return str(problem["message"])


def test_ten_mistakes_are_named_at_once_in_order(tmp_path: Path) -> None:
    path = tmp_path / "ten.yaml"
    path.write_text(TEN_MISTAKES)
    with pytest.raises(UserError) as caught:
        load_experiment(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"11 problems in {path}"
    assert [line.removeprefix(f"{path}:") for line in lines[1:]] == [
        "4:3: codec.patch_size = 8 does not divide corpus.image_size = 30; choose 6 or 10",
        '9:52: codec.training.optimizer.learning_rate = "fast" is not a number',
        "10:1: model.ffn_width is missing; model needs it",
        "12:3: model.depth = true is not a whole number",
        "13:3: model.heads = 12 does not divide model.width = 1000; choose 10 or 20",
        "15:3: model.zero is not a key of model; zero belongs in train",
        '16:11: latents.mode = "cashed" is no choice; did you mean cached? choose cached, streamed,'
        " write_through",
        "18:3: train.steps = -5 is too small; give a number greater than 0",
        "19:3: train.batch_size = 9 is not divisible by corpus.lanes = 8 and workers × accumulation"
        " = 2; choose 8 or 16",
        "21:3: train.wrokers is not a key of train; did you mean workers?",
        "24:3: train.precision is given twice, first in line 23; remove one of them",
    ]
    assert set(caught.value.report["problems"][0]) == {
        "file", "line", "column", "path", "value", "message",
    }  # fmt: skip


def test_each_mistake_alone_is_found_as_well(whole: Path) -> None:
    """No mistake of the list above is only found thanks to another one."""
    for override, words in [
        ("corpus.image_size=30", "codec.patch_size = 8 does not divide"),
        ("model.heads=12", "model.heads = 12 does not divide model.width = 64; choose 8 or 16"),
        ("model.depth=true", "is not a whole number"),
        ("model.depth=-1", "model.depth = -1 is not positive"),
        ("train.steps=1e3", "train.steps = 1000.0 is not a whole number; write 1000"),
        ("train.steps='20'", "write 20 without quotes"),
        ("train.steps=", "train.steps has no value; give a whole number"),
        ("corpus.flip=yes", 'corpus.flip = "yes" is not true or false'),
        ("corpus.source=3", "corpus.source = 3 is not text; put it in quotes"),
        ("corpus.max_bad_fraction=1", "too large; give a number less than 1"),
        ("corpus.held_out_fraction=0", "corpus.held_out_fraction = 0 leaves nothing"),
        ("codec.patch_size=0", "codec.patch_size = 0 is not positive"),
        ("codec.variance={kind: fixd}", "did you mean fixed?"),
        ("codec.variance={kind: fixed, c_sigma: 1}", "not a key of codec.variance of kind fixed"),
        ("codec.training.batch_size=9", "divisible by corpus.lanes = 8; choose 8 or 16"),
        ("codec.training.workers=3", "does not divide corpus.lanes = 8; choose 2 or 4"),
        ("train.accumulation=16", "and workers × accumulation = 16; choose 16"),
        ("evaluate.cfg_scales=[1, x]", 'evaluate.cfg_scales.1 = "x" is not a number'),
        ("train.optimizer.betas=[0.9]", "train.optimizer.betas has too few values; give 2"),
        ("train.optimizer.betas=[0.9, 0.9, 0.9]", "too many values; give 2"),
        ("train.label_dropout=0", "needs train.label_dropout above 0"),
        ("train.workers=x", 'train.workers = "x" is not a whole number'),
        ("model.width=x", 'model.width = "x" is not a whole number'),
        ("train=3", "train = 3 is not a section"),
        ("name=a/b", "name = \"a/b\" does not fit"),
        ("steps=3", "steps is not a key of an experiment; steps belongs in codec.training or"),
        ("train.name=x", "name belongs at the top of the file"),
        ("train.num_steps=3", "train.num_steps is not a key of train"),
        ("train.batch-size=3", "did you mean batch_size?"),
        ("extends=[a.yaml]", "extends cannot be set"),
        ("train.steps", "is not path=value"),
        (".=3", "is not path=value"),
    ]:  # fmt: skip
        assert words in message_of(whole, override), override


SPEECH = """\
name: speech
corpus:
  kind: transcribed_speech
  source: some/folder
  seconds: 3
codec:
  kind: speech_conv
  latent_width: 32
  variance: {kind: half_normal}
  training: {steps: 10, batch_size: 8, optimizer: {learning_rate: 1e-3}}
model:
  width: 64
  depth: 2
  heads: 4
  ffn_width: 128
  vocabulary: 300
  head: {ffn_width: 128}
train: {steps: 20, batch_size: 8, optimizer: {learning_rate: 1e-3}}
"""


def test_mistakes_of_another_kind_of_section_are_as_well_located(tmp_path: Path) -> None:
    path = tmp_path / "speech.yaml"
    path.write_text(SPEECH)
    with pytest.raises(UserError) as caught:
        load_experiment(path, overrides=["codec.depths=[1]", "codec.variance.kind=fixd"])
    assert str(caught.value).splitlines()[1:] == [
        f"{path}:5:3: corpus.seconds is not a key of corpus of kind transcribed_speech;"
        " did you mean min_seconds?",
        f"{path}:11:1: model.stop: count needs a fixed latent_count; choose eod or continue",
        "--set codec.depths: codec.depths = 1 depths do not fit 5 strides; give 6, one for each"
        " stage",
        '--set codec.variance.kind: codec.variance.kind = "fixd" is no choice; did you mean fixed?'
        " choose half_normal, fixed, diagonal_gaussian",
    ]


def test_a_section_without_a_kind_has_the_default_one(whole: Path) -> None:
    experiment = load_experiment(whole)
    kinds = (experiment.corpus.kind, experiment.codec.kind, experiment.model.kind)
    assert kinds == ("class_images", "image_vit", "latent_lm")
    for override, words in [
        ("corpus={kind: class_image}", 'corpus.kind = "class_image" is no choice; did you mean'),
        ("corpus.kind=3", "corpus.kind = 3 is no choice; choose class_images, multimodal_mixture"),
        ("corpus.kind=", "corpus.kind is missing; it chooses among"),
        ("corpus=3", "corpus = 3 is not a section"),
        ("corpus.classes=-1", "corpus.classes = -1 is too small"),
        ("codec.encoder.width=x", 'codec.encoder.width = "x" is not a whole number'),
        ("model.head.depth=x", 'model.head.depth = "x" is not a whole number'),
        ("corpus.prompt_seconds=3", "not a key of corpus; it belongs to kind transcribed_speech"),
        ("corpus.image_sise=3", "not a key of corpus; did you mean image_size?"),
        ("codec.strides=[1]", "not a key of codec; it belongs to kind speech_conv"),
        ("codec.kind=vector_quantized", "model.kind: latent_lm does not fit codec.kind vector_qu"),
        ("model.kind=code_lm", "does not fit codec.kind image_vit of corpus.kind class_images"),
        ("model.vocabulary=300", "either classes or a vocabulary"),
        ("sample.guidance_interval=[0.5, 0.2]", "[0.5, 0.2] is no part of [0, 1]"),
        ("sample.text.top_k=0", "sample.text.top_k = 0 is not positive"),
    ]:
        assert words in message_of(whole, override), override
    (problem,) = problems_of(whole, "corpus.kind=other")
    assert problem["file"] == "--set corpus.kind"
    assert problem["path"] == "corpus.kind"


def test_another_kind_leaves_behind_what_it_does_not_have(whole: Path) -> None:
    experiment = load_experiment(whole, overrides=["model={kind: dit, norm_eps: 1e-5}"])
    assert experiment.model.model_dump(exclude={"diffusion", "initial_weights"}) == {
        "kind": "dit", "width": 64, "depth": 2, "heads": 4, "ffn_width": 128, "norm_eps": 1e-5,
    }  # fmt: skip
    back = load_experiment(
        whole, overrides=["model.kind=dit", "model={kind: latent_lm, head: {ffn_width: 8}}"]
    )
    assert back.model.head.ffn_width == 8


def test_guidance_and_text_are_set_in_yaml(whole: Path) -> None:
    sample = "sample={guidance_interval: [0.1, 0.8], guidance_schedule: rising, text: {top_k: 50}}"
    one = load_experiment(whole, overrides=[sample]).sample
    assert (one.guidance_interval, one.guidance_schedule) == ((0.1, 0.8), "rising")
    assert (one.text.top_k, one.text.temperature) == (50, 1.0)


def test_overrides_are_located_by_their_argument(whole: Path) -> None:
    (problem,) = problems_of(whole, "train.steps=-1")
    assert (problem["file"], problem["line"]) == ("--set train.steps", None)
    experiment = load_experiment(whole, overrides=["train.steps=7", "train.zero={stage: 2}"])
    assert (experiment.train.steps, experiment.train.zero.stage) == (7, 2)
    assert experiment.train.batch_size == 8


def test_fragments_merge_deeply_and_the_file_wins(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.yaml").write_text(WHOLE)
    (tmp_path / "shared" / "b.yaml").write_text("extends: [a.yaml]\ntrain: {steps: 30}\n")
    (tmp_path / "c.yaml").write_text("evaluate: {cfg_scales: [1, 2, 3]}\ntrain: {workers: 2}\n")
    path = tmp_path / "x.yaml"
    path.write_text(
        "extends: [shared/b.yaml, c.yaml]\nname: x\nevaluate: {cfg_scales: [4]}\n"
        "codec: {variance: {kind: fixed, sigma: 0.1}}\n"
    )
    experiment = load_experiment(path)
    assert (experiment.name, experiment.train.steps, experiment.train.workers) == ("x", 30, 2)
    assert experiment.evaluate.cfg_scales == (4.0,)
    assert dict(vars(experiment.codec.variance)) == {"kind": "fixed", "sigma": 0.1}
    positions = [source_text(path).index(f"/{name}\n") for name in ("a.yaml", "b.yaml", "c.yaml")]
    assert positions == sorted(positions)
    (problem,) = problems_of(path, "train.batch_size=9")
    assert problem["file"] == "--set train.batch_size"
    (tmp_path / "shared" / "b.yaml").write_text("extends: [a.yaml]\ntrain: {steps: 0}\n")
    (problem,) = problems_of(path)
    assert (Path(problem["file"]).name, problem["line"], problem["column"]) == ("b.yaml", 2, 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: [none.yaml]\n", "there is no file"),
        ("extends: [x.yaml]\n", "in a circle"),
        ("extends: [y.yaml]\n", "in a circle"),
        ("extends: [/etc/x.yaml]\n", "extends expects a list"),
        ("extends: [../../etc/passwd]\n", "extends expects a list"),
        ("extends: 3\n", "extends expects a list"),
    ],
)
def test_bad_fragments_are_located(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.yaml").write_text(text + WHOLE)
    (tmp_path / "y.yaml").write_text("extends: [x.yaml]\n")
    (problem,) = problems_of(tmp_path / "x.yaml")
    assert words in problem["message"]
    assert problem["line"] == 1


def test_the_key_is_that_of_what_is_computed(whole: Path) -> None:
    key = experiment_key(load_experiment(whole))
    assert len(key) == 12

    def changed(override: str) -> bool:
        return experiment_key(load_experiment(whole, overrides=[override])) != key

    assert changed("train.steps=21")
    assert changed("seed=1")
    assert changed("sample.cfg_scale=2")
    assert not changed("train.steps=20")
    assert not changed("train.optimizer.betas=[0.9, 0.98]")
    assert not changed("train.optimizer.learning_rate=0.001")
    assert not changed("cluster.cpus=7")
    assert not changed("tracking.experiment=other")
    assert not changed("question=why")


def test_the_resolved_form_reads_back_as_itself(whole: Path, tmp_path: Path) -> None:
    experiment = load_experiment(whole, overrides=["name='1e-4'", "sweep={grid: {seed: [1, 2]}}"])
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(experiment))
    assert load_experiment(again) == experiment


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("{sample.step: [1]}", "sample.step is not a path of an experiment; did you mean sample.s"),
        ("{workers: [1]}", "did you mean codec.training.workers or train.workers?"),
        ("{sample.steps: []}", "the list is empty"),
        ("{sample.steps: [5, 0.5]}", "sample.steps = 0.5 is not a whole number"),
        ("{sample.steps: 5}", "is not a list"),
        ("{name: [a, b]}", "the same for every point"),
        ("{train.workers: [1, 3]}", "point train.workers=3: train.workers = 3 does not divide"),
        (f"{{seed: {list(range(1001))}}}", "1001 points, more than 1000"),
    ],
)  # fmt: skip
def test_sweeps_are_checked_point_by_point(whole: Path, grid: str, words: str) -> None:
    whole.write_text(WHOLE + f"sweep: {{grid: {grid}}}\n")
    (problem,) = problems_of(whole)
    assert words in problem["message"]
    assert problem["line"] == len(WHOLE.splitlines()) + 1


def test_sweep_points_are_the_product_and_carry_no_sweep(whole: Path) -> None:
    override = "sweep={grid: {codec.variance.kind: [fixed, half_normal], sample.steps: [5, 10]}}"
    points = sweep_points(load_experiment(whole, overrides=[override]))
    assert [tuple(point.values.values()) for point in points] == [
        ("fixed", 5), ("fixed", 10), ("half_normal", 5), ("half_normal", 10),
    ]  # fmt: skip
    assert points[1].experiment.sample.steps == 10
    assert points[1].experiment.codec.variance.kind == "fixed"
    assert all(point.experiment.sweep is None for point in points)
    assert len({experiment_key(point.experiment) for point in points}) == 4


def test_the_schema_knows_variants() -> None:
    assert keys_at(("codec", "variance"), kind="fixed") == ["kind", "sigma"]
    assert ("codec", "variance", "c_sigma") in every_path()
    assert ("train", "zero", "stage") in every_path()
    assert ("corpus", "pairs", "proportion") in every_path()
    assert "channels" in keys_at(("codec",), kind="speech_conv")
    assert "channels" not in keys_at(("codec",), kind="image_vit")


JUNK = st.sampled_from(
    [None, True, -1, 0, 3.5, 10**18, "", "x" * 300, "../..", [], [1], {}, {"kind": "fixed"}]
)  # fmt: skip


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from(sorted(every_path())), JUNK), min_size=1, max_size=4))
def test_whatever_stands_at_a_path_only_a_user_error_comes_out(
    tmp_path: Path, changes: list[tuple[tuple[str, ...], Any]]
) -> None:
    data = copy.deepcopy(parse_yaml(WHOLE, file="f").data)
    for path, value in changes:
        section = data
        for part in path[:-1]:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        section[path[-1]] = copy.deepcopy(value)
    (tmp_path / "f.yaml").write_text(dump_yaml(data))
    with contextlib.suppress(UserError):
        load_experiment(tmp_path / "f.yaml")


def test_validate_is_quick_and_imports_neither_torch_nor_ray(whole: Path) -> None:
    code = (
        "import sys; from latentlm_platform.experiment.files import load_experiment;"
        f"load_experiment({str(whole)!r});"
        "print([m for m in ('torch', 'ray', 'numpy', 'mlflow', 'deepspeed') if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.strip() == "[]"
    processor_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert processor_s < 1  # wall-clock would measure what else the machine does
