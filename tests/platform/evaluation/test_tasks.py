"""Tasks: those that the YAML lists, what each finds and shows, and all of them on real actors."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from latentlm.media import read_png
from latentlm_platform.corpora.splits import open_splits
from latentlm_platform.errors import UserError
from latentlm_platform.evaluation.actor import Described, EvaluatorActor
from latentlm_platform.evaluation.actor_pool import EvaluatorPool
from latentlm_platform.evaluation.evaluator import TASKS, Evaluator, chosen_tasks
from latentlm_platform.evaluation.generation import (
    GeneratedImages,
    Generation,
    ScaleImages,
    draw_images,
    image_batches,
)
from latentlm_platform.evaluation.judge import Judge
from latentlm_platform.evaluation.references import References
from latentlm_platform.evaluation.task import Subject
from latentlm_platform.experiment.files import load_experiment
from latentlm_platform.experiment.sections import Evaluate, Sample, TaskName
from making_corpora import corpus, write_class_folders
from making_exports import make_export

QUICKSTART = Path(__file__).parents[3] / "experiments" / "quickstart.yaml"
FRECHET = "frechet_efficientnet_lite0"
STYLE = "inception_style_efficientnet_lite0"
WITH_INTERVAL = ("generated_accuracy", FRECHET, STYLE, "real_accuracy")
SHARED = {
    "real_accuracy", "real_accuracy_low", "real_accuracy_high", "real_accuracy_images",
    "generated_images", "reference_images", f"{FRECHET}_floor", f"{FRECHET}_reconstruction",
    "reconstruction_psnr", "reconstruction_ssim",
}  # fmt: skip
BY_SCALE = {
    *(f"{name}{end}" for name in WITH_INTERVAL[:3] for end in ("", "_low", "_high")),
    f"{FRECHET}_above_reconstruction", "sampling_cpu_seconds_per_image",
    *(f"{name}{end}" for name in ("exposure_bias", "exposure_bias_last", "teacher_forced_error")
      for end in ("", "_floor")), "exposure_bias_images",
}  # fmt: skip


def names(*overrides: str) -> list[str]:
    """The tasks that the quickstart with these overrides does, in order."""
    chosen = chosen_tasks(load_experiment(QUICKSTART, overrides=overrides))
    return [name for task in chosen for name, known in TASKS.items() if known is task]


def test_the_table_has_every_task_of_the_schema() -> None:
    assert set(TASKS) == set(get_args(TaskName)) == set(Evaluate().tasks)


def test_the_yaml_lists_the_tasks() -> None:
    assert names() == ["reconstruction", "generation", "exposure"]
    assert names("evaluate.tasks=[generation, reconstruction]") == ["reconstruction", "generation"]
    assert names("evaluate.tasks=[exposure]") == ["exposure"]
    assert names("evaluate.exposure_bias_images=0") == ["reconstruction", "generation"]
    dit = "model={kind: dit, width: 64, depth: 2, heads: 2, ffn_width: 96}"
    assert names(dit) == ["reconstruction", "generation"]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (
            "[generation, perplexity]",
            ('tasks.1 = "perplexity" is no choice', "generation, reconstruction, exposure"),
        ),
        ("[exposure, generation, exposure]", ("exposure is already listed", "tasks.2")),
        ("[]", ("evaluate.tasks: the list is empty",)),
    ],
)
def test_what_is_no_list_of_tasks_is_refused(tasks: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment(QUICKSTART, overrides=[f"evaluate.tasks={tasks}"])
    assert all(word in str(caught.value) for word in words)


def subject_of(folder: Path, *, images: int = 4) -> Subject:
    evaluate = f"evaluate={{images: {images}, cfg_scales: [2]}}"
    experiment = load_experiment(QUICKSTART, overrides=[evaluate, "sample.cfg_scale=1"])
    nothing: Any = None
    judge = Judge({}, 1, 3, correct=9, judged=10)
    features = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    return Subject(
        experiment,
        folder,
        "codec",
        nothing,
        folder,
        (1.0, 2.0),
        judge=judge,
        references=References(*features),
    )


def test_generation_scores_and_shows_what_it_is_given(tmp_path: Path) -> None:
    subject, random = subject_of(tmp_path), np.random.default_rng(1)

    def images(predicted: list[int]) -> ScaleImages:
        features, logits = random.normal(size=(2, 4, 5)).astype(np.float32)
        pixels = random.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
        return ScaleImages(np.arange(4), Described(features, logits, np.array(predicted)), pixels)

    scales = {1.0: images([0, 1, 2, 3]), 2.0: images([0, 0, 0, 3])}
    traces = {1.0: random.integers(0, 256, (2, 3, 8, 8, 1), dtype=np.uint8)}
    generated = GeneratedImages(scales, traces, seconds=12.0)
    scores = Generation().score(subject, generated, shared={f"{FRECHET}_reconstruction": 0.25})
    assert [scores.by_scale[s]["generated_accuracy"] for s in (1.0, 2.0)] == [1.0, 0.5]
    assert scores.shared["real_accuracy"] == 0.9
    for scale, seconds in ((1.0, 1.0), (2.0, 2.0)):  # a guided image takes two rows
        metrics = scores.by_scale[scale]
        assert metrics["sampling_cpu_seconds_per_image"] == pytest.approx(seconds)
        assert metrics[f"{FRECHET}_above_reconstruction"] == metrics[FRECHET] - 0.25
    alone = Generation().score(subject, generated, shared={})
    assert f"{FRECHET}_above_reconstruction" not in alone.by_scale[1.0]
    shown = Generation().show(subject, generated)
    assert shown.pictures == {
        1.0: {"samples": "samples-cfg-1.png", "trajectory": "trajectory-cfg-1.png"},
        2.0: {"samples": "samples-cfg-2.png"},
    }
    assert read_png((tmp_path / "trajectory-cfg-1.png").read_bytes()).shape[:2] == (22, 32)
    with (tmp_path / "samples.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["predicted_class"] for line in lines] == list("01230003")
    assert [line["cfg_scale"] for line in lines] == ["1.0"] * 4 + ["2.0"] * 4


def test_only_what_a_grid_shows_comes_back_as_pixels(tmp_path: Path) -> None:
    actor = EvaluatorActor(extractor="efficientnet_lite0", feature_size=32)
    actor.use_export(make_export(tmp_path, "classes"))
    ids = np.array([78, 79, 80, 81])
    scales = np.array([1.0, 1.0, 2.0, 2.0])
    by_scale, seconds = draw_images(
        actor, labels=ids % 3, ids=ids, cfg_scales=scales, sampler=Sample(steps=2), seed=0
    )
    assert seconds > 0
    assert [len(by_scale[scale].pixels) for scale in (1.0, 2.0)] == [2, 0]
    assert [len(by_scale[scale].described.features) for scale in (1.0, 2.0)] == [2, 2]


def test_batches_hold_every_scale_of_their_images_with_the_same_noise(tmp_path: Path) -> None:
    experiment = subject_of(tmp_path, images=300).experiment
    batches = list(image_batches(experiment, cfg_scales=(1.0, 2.0)))
    assert [len(batch["ids"]) for batch in batches] == [250, 250, 100]
    for batch in batches:
        half = len(batch["ids"]) // 2
        assert np.array_equal(batch["ids"][:half], batch["ids"][half:])
        assert np.array_equal(batch["labels"], batch["ids"] % 10)
        assert batch["cfg_scales"].tolist() == [1.0] * half + [2.0] * half


def test_an_evaluator_draws_codes_as_the_sample_section_says(tmp_path: Path) -> None:
    actor = EvaluatorActor(extractor="efficientnet_lite0", feature_size=32)
    actor.use_export(make_export(tmp_path, "codes"))

    def pixels(**text: float) -> np.ndarray[Any, Any]:
        sampler = Sample(text=Sample().text.__class__(**text))  # type: ignore[arg-type]
        how = {"cfg_scales": np.ones(6), "sampler": sampler, "seed": 0}
        ids = np.arange(6)
        by_scale, _ = draw_images(actor, labels=ids % 3, ids=ids, **how)  # type: ignore[arg-type]
        return by_scale[1.0].pixels

    drawn, likeliest = pixels(), pixels(temperature=0.0)
    assert drawn.shape == (6, 8, 8, 1)
    assert np.array_equal(likeliest[0], likeliest[3])  # of one class, without chance
    assert not np.array_equal(drawn[0], drawn[3])


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_all_tasks_of_a_small_model_on_actors(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "corpus", classes=3, images_a_class=40, size=8)
    (source / "class-1" / "0000.png").write_bytes(b"no image")
    settings = corpus(source=str(source), channels=1, held_out_fraction=0.5, layout="folder")
    evaluate = Evaluate(
        images=20, cfg_scales=(2.0,), feature_size=32, actors=2, batch_size=12,
        classifier_items=48, exposure_bias_images=48,
    )  # fmt: skip
    experiment: Any = SimpleNamespace(
        corpus=settings,
        evaluate=evaluate,
        sample=Sample(steps=2, cfg_scale=1.0),
        model=SimpleNamespace(kind="latent_lm"),
        train=SimpleNamespace(gpus_per_worker=0),
        seed=0,
    )
    pool, told = EvaluatorPool(), list[int]()
    evaluator = Evaluator(
        experiment,
        export=make_export(tmp_path, "classes"),
        codec="codec",
        splits=open_splits(settings, seed=0),
        folder=tmp_path / "evaluation",
    )
    try:
        found = evaluator.run(pool, on_progress=told.append)
    finally:
        pool.close()
    assert told == [12, 24, 36, 40]
    assert evaluator.items == 40
    assert set(found.shared) == SHARED
    for scale in (1.0, 2.0):
        assert set(found.metrics_at(scale)) == SHARED | BY_SCALE
        assert np.isfinite(list(found.metrics_at(scale).values())).all()
    facts = found.facts()
    assert set(facts["by_cfg_scale"]) == {"1", "2"}
    assert set(facts["shown"]["2"]["pictures"]) == {"samples", "trajectory"}
    assert [row["position"] for row in facts["shown"]["1"]["tables"]["exposure_bias.json"]] == [
        0, 1, 2, 3,
    ]  # fmt: skip
    assert facts["files"] == ["samples.csv"]
    assert (tmp_path / "evaluation" / "trajectory-cfg-2.png").exists()
    assert found.shared["reference_images"] in (19, 20)  # one may be bad
    assert found.metrics_at(1.0)["exposure_bias_images"] in (47, 48)
