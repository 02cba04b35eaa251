"""The command line's frame: exit codes, --json, quiet standard output, every command's help."""

import json
from pathlib import Path

import pytest

from latentlm_platform import cli
from latentlm_platform.planning.doctor import Check, examine

QUICKSTART = Path(__file__).parents[3] / "experiments" / "quickstart.yaml"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    shown = capfd.readouterr().out
    assert f"latentlm {command}" in shown
    assert "--json" in shown


def test_validate_prints_or_writes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(QUICKSTART)]) == 0
    assert "ok" in capfd.readouterr().out
    target = tmp_path / "found.json"
    assert cli.main(["validate", str(QUICKSTART), "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["valid"] is True
    assert len(report["experiments"][0]["key"]) == 12


def test_mistakes_exit_2_and_standard_output_holds_only_json(
    capfd: pytest.CaptureFixture[str],
) -> None:
    overrides = ["--set", "train.stpes=3", "--set", "model.heads=7"]
    assert cli.main(["validate", str(QUICKSTART), *overrides, "--json", "-"]) == 2
    captured = capfd.readouterr()
    report = json.loads(captured.out)
    assert report["valid"] is False
    assert [problem["path"] for problem in report["problems"]] == ["model.heads", "train.stpes"]
    assert "did you mean steps?" in captured.err


def test_a_missing_file_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "no/such.yaml"]) == 2
    assert (
        capfd.readouterr()
        .err.strip()
        .endswith("no/such.yaml: there is no such file; check the path")
    )


def test_an_unwritable_json_path_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(QUICKSTART), "--json", "/nonexistent/x.json"]) == 2
    assert "cannot be written" in capfd.readouterr().err


def test_the_schema_accepts_what_the_loader_accepts(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", "--json", "-"]) == 0
    schema = json.loads(capfd.readouterr().out)
    assert {"extends", "corpus", "codec", "model", "train", "sweep"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert "required" not in json.dumps(schema)


def test_doctor_names_a_remedy_for_whatever_is_not_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))
    checks = {check.name: check for check in examine()}
    assert checks["ray token"].state == "warning"
    assert "chmod 600" in checks["ray token"].remedy
    assert "secret" not in "".join(map(str, checks.values()))
    assert checks["packages"].state == "ok"
    assert all(check.remedy for check in checks.values() if check.state != "ok")
    token.chmod(0o600)
    assert {c.name: c.state for c in examine()}["ray token"] == "ok"
    assert cli.main(["doctor", "--json", "-"]) == 0
    assert json.loads(capfd.readouterr().out)["ok"] is True


def test_doctor_fails_where_a_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentlm_platform.planning import doctor

    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["no-such-package==1"])
    (check,) = [one for one in examine() if one.name == "packages"]
    assert check == Check("packages", "fail", "no-such-package is missing", check.remedy)
    assert "pip install" in check.remedy
