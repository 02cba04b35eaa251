"""Every shipped experiment loads, fits a two-core machine's plan, and resolves as recorded.

`UPDATE_GOLDEN=1 pytest tests/test_experiments.py` records the resolved forms anew.
"""

import os
from pathlib import Path

import pytest

from latentlm_platform.experiment_file import load_experiment, resolved_yaml, source_text
from latentlm_platform.located_yaml import read_yaml

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
GOLDEN = Path(__file__).parent / "golden"
SHIPPED = [
    path.relative_to(EXPERIMENTS)
    for path in sorted(EXPERIMENTS.rglob("*.yaml"))
    if "shared" not in path.parts and path.name != "recorded.yaml"
]


def golden_path(shipped: Path) -> Path:
    return GOLDEN / "resolved" / shipped


@pytest.mark.parametrize("shipped", SHIPPED, ids=str)
def test_the_resolved_form_is_the_recorded_one(shipped: Path) -> None:
    resolved = resolved_yaml(load_experiment(EXPERIMENTS / shipped))
    golden = golden_path(shipped)
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(resolved, encoding="utf-8")
    assert golden.exists(), f"run UPDATE_GOLDEN=1 pytest {__file__}"
    assert resolved == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("shipped", SHIPPED, ids=str)
def test_it_says_what_it_is_for(shipped: Path) -> None:
    experiment = load_experiment(EXPERIMENTS / shipped)
    assert experiment.question.endswith("?") or experiment.reproduces, "give it a question"


def test_the_quickstart_is_there_and_nothing_recorded_is_left_over() -> None:
    assert Path("quickstart.yaml") in SHIPPED
    recorded = {p.relative_to(GOLDEN / "resolved") for p in (GOLDEN / "resolved").rglob("*.yaml")}
    assert recorded == set(SHIPPED)


def test_every_shared_fragment_is_used_and_reads() -> None:
    used = "".join(source_text(EXPERIMENTS / shipped) for shipped in SHIPPED)
    for fragment in (EXPERIMENTS / "shared").glob("*.yaml"):
        assert read_yaml(fragment).problems == []
        assert f"/{fragment.name}\n" in used, f"no experiment extends {fragment.name}"
