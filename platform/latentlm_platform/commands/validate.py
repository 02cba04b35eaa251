"""Check experiment files: every mistake at once, each with its file, line and column.

latentlm validate experiments/quickstart.yaml
latentlm validate experiments/quickstart.yaml --set train.steps=20 --resolved
"""

import argparse
from typing import Any

from latentlm_platform.commands import Result
from latentlm_platform.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="experiment YAML")
    add_overrides(parser)
    parser.add_argument(
        "--resolved", action="store_true", help="print the experiment with every default"
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The `--set` argument that several commands share."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="change one value, such as train.steps=20; may be repeated",
    )


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.experiment.files import experiment_key, load_experiment, resolved_yaml

    reports: list[dict[str, Any]] = []
    sentences, problems = [], []
    for file in arguments.files:
        try:
            experiment = load_experiment(file, overrides=arguments.overrides)
        except UserError as error:
            sentences.append(str(error))
            problems += error.report.get("problems", [{"file": file, "message": str(error)}])
            continue
        key = experiment_key(experiment)
        reports.append({"file": file, "name": experiment.name, "key": key})
        if arguments.resolved:
            print(f"# {file}, key {key}\n{resolved_yaml(experiment)}", end="")
        else:
            print(f"{file}: ok, {experiment.name!r}, key {key}")
    if sentences:
        raise UserError("\n".join(sentences), report={"valid": False, "problems": problems})
    return Result({"valid": True, "problems": [], "experiments": reports})
