"""`latentlm compare` against a store whose values are known."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from latentlm_dashboards.runs import find_run
from latentlm_platform.commands import compare
from latentlm_platform.errors import UserError


def run_compare(*arguments: str) -> Any:
    parser = argparse.ArgumentParser()
    compare.configure(parser)
    return compare.execute(parser.parse_args(arguments)).report


def test_what_differs_and_by_how_much(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_compare("small", "81c0", "--uri", uri)
    assert report["parameters"] == {"model.width": ["64", "128"]}
    accuracy = report["metrics"]["generated_accuracy"]
    assert accuracy["difference"] == pytest.approx(0.005)
    assert accuracy["a_interval"] == pytest.approx((0.885, 0.925))
    assert "generated_accuracy_low" not in report["metrics"]
    assert report["metrics"]["evaluation[cfg_scale=1.5].generated_accuracy"]["a"] == 0.875
    assert report["metrics"]["model.loss"] == {
        "a": 0.5,
        "b": 0.5,
        "a_interval": None,
        "b_interval": None,
        "difference": 0.0,
    }
    assert (report["a"]["key"], report["b"]["name"]) == ("3f9a1111", "wide")
    printed = capsys.readouterr().out
    assert "0.905 [0.885, 0.925]" in printed
    assert "+0.005" in printed
    assert report["link"] in printed


def test_a_run_is_found_by_each_of_its_names(client: Any) -> None:
    run = find_run(client, "small")
    assert run.key == "3f9a1111"
    for reference in (run.run_id, "3f9a1111", "3f9a"):
        assert find_run(client, reference).run_id == run.run_id


def test_a_repeated_key_means_the_newest_and_other_doubles_are_refused(
    tmp_path: Path,
) -> None:
    from latentlm_dashboards.runs import connect

    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("e")
    for key, start in (("aaaa1", 1), ("aaaa1", 2), ("aaaa2", 3)):
        tags = {"latentlm.kind": "run", "latentlm.key": key}
        made = client.create_run(experiment, run_name="same", tags=tags, start_time=start)
        client.log_param(made.info.run_id, "start", start)
    assert find_run(client, "aaaa1").parameters == {"start": "2"}
    for reference in ("same", "aaaa"):
        with pytest.raises(LookupError, match="several runs"):
            find_run(client, reference)


def test_what_is_not_there_is_one_sentence(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"no run is called 'nope'.*wide \(81c03333\)"):
        run_compare("nope", "wide", "--uri", uri)
    with pytest.raises(UserError, match="no runs in"):
        run_compare("a", "b")
    assert not (tmp_path / "mlflow.db").exists()
    with pytest.raises(UserError, match="does not answer"):
        run_compare("a", "b", "--uri", "http://127.0.0.1:9")
