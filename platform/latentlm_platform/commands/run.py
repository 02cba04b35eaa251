"""Do what is missing of an experiment: codec, latents and statistics, model, evaluation.

    latentlm run experiments/quickstart.yaml
    latentlm run experiments/quickstart.yaml --set train.steps=200 --until model

Equal work is never done twice: artifacts are found again by what they were computed from. The same
command resumes an interrupted run, and prints the result of a finished one; --new repeats it.
Ctrl-C saves a checkpoint and says how to go on.
"""

import argparse
from pathlib import Path

from latentlm_platform.commands import Result
from latentlm_platform.commands.validate import add_overrides
from latentlm_platform.errors import UserError

STAGES = ("codec", "latents", "model", "evaluation")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="experiment YAML")
    add_overrides(parser)
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="stop after this stage")
    parser.add_argument("--new", action="store_true", help="repeat a finished run from scratch")


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.commands.results import perform
    from latentlm_platform.experiment.files import load_experiment
    from latentlm_platform.pipeline import Request

    try:
        experiment = load_experiment(arguments.file, overrides=arguments.overrides)
        return perform(
            Request(
                experiment,
                source=str(Path(arguments.file).resolve()),
                overrides=tuple(arguments.overrides),
                until=arguments.until,
                new=arguments.new,
                verbose=arguments.verbose,
            )
        )
    except UserError as error:
        error.report.setdefault("status", "FAILED")
        raise
