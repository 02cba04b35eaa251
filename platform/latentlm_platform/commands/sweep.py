"""Run every point of a sweep that is missing, and read the result.

    latentlm sweep experiments/image/sweeps/cfg.yaml
    latentlm sweep experiments/image/sweeps/cfg.yaml --resume
    latentlm sweep experiments/image/sweeps/cfg.yaml --retry failed
    latentlm sweep experiments/image/sweeps/cfg.yaml --model quickstart

Points that share a codec or a model share its training; `latentlm plan` counts what is needed. What
was finished is in the sweep's ledger and is never done again; the same command goes on after any
interruption. Exit code 0: every point is finished; 4: some failed, and the rest was read.
"""

import argparse
from pathlib import Path

from latentlm_platform.commands import Result
from latentlm_platform.commands.validate import add_overrides


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="experiment YAML with a sweep")
    add_overrides(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--resume", action="store_true", help="only go on with one begun before")
    which.add_argument("--new", action="store_true", help="repeat a finished sweep from scratch")
    parser.add_argument("--retry", choices=["failed"], help="try points again that failed")
    parser.add_argument(
        "--model", metavar="RUN", help="sample from this run's model; nothing is trained"
    )


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.commands.sweep_results import perform_sweep
    from latentlm_platform.errors import UserError
    from latentlm_platform.experiment.files import experiment_key, load_experiment
    from latentlm_platform.pipeline import Request
    from latentlm_platform.runs import find_run, read_runs

    try:
        experiment = load_experiment(arguments.file, overrides=arguments.overrides)
        if experiment.sweep is None:
            raise UserError(
                f"{arguments.file} has no sweep: list values under sweep.grid, or use"
                f" `latentlm run {arguments.file}`"
            )
        key = experiment_key(experiment)
        begun = any(record.key.startswith(key) for record in read_runs())
        if arguments.resume and not begun:
            raise UserError(
                f"no sweep {key} of {arguments.file} was begun here: leave --resume out, or look"
                " for a change of the file since then"
            )
        model = arguments.model and find_run(arguments.model, having="model")
        request = Request(
            experiment,
            source=str(Path(arguments.file).resolve()),
            overrides=tuple(arguments.overrides),
            new=arguments.new,
            verbose=arguments.verbose,
            trained=model or None,
        )
        return perform_sweep(request, retry_failed=arguments.retry == "failed")
    except UserError as error:
        error.report.setdefault("status", "FAILED")
        raise
