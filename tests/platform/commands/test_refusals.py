"""What a run refuses before anything starts, and which run a name means."""

from pathlib import Path

import pytest

from latentlm_platform import cli
from latentlm_platform.runs import RunRecord, find_run

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


def test_a_sweep_is_not_run_as_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path))
    assert cli.main(["run", str(EXPERIMENTS / "image" / "collapse.yaml")]) == 2
    assert "has a sweep: use `latentlm sweep`" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sample.steps=2000", "sample.steps = 2000 is more than the process has; give 1 to 1000"),
        ("model.rope_base=0", "model.rope_base = 0"),
        ("model.norm_eps=-1", "model.norm_eps = -1"),
    ],
)
def test_what_a_sampler_or_a_model_cannot_do_is_said_at_once(
    change: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["validate", str(EXPERIMENTS / "quickstart.yaml"), "--set", change]) == 2
    assert words in capfd.readouterr().err
    flow = ["model.diffusion.process=flow", "model.diffusion.prediction=velocity"]
    settings = [part for one in (*flow, "sample.steps=2000") for part in ("--set", one)]
    assert cli.main(["validate", str(EXPERIMENTS / "quickstart.yaml"), *settings]) == 0


def test_a_name_means_its_newest_run_that_has_what_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path))
    for key, started, artifacts in (("a1", 1.0, {"model": "m"}), ("b2", 2.0, {})):
        record = RunRecord(key=key, name="mine", source="x.yaml", overrides=(), attempt=1)
        record.changed(started_s=started, artifacts=artifacts)
    assert find_run("mine").key == "b2"
    assert find_run("mine", having="model").key == "a1"
    assert find_run("mine", having="codec").key == "b2"
