"""Go on with an interrupted run, from its last checkpoint.

    latentlm resume 3f2a
    latentlm resume quickstart
    latentlm resume quickstart --address http://head:8265 --follow

A run is named by its key, the start of its key, or its name.
"""

import argparse

from latentlm_platform.commands import Result
from latentlm_platform.commands.addressed import add_address, resume_job


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="key, start of a key, or name")
    add_address(parser)
    parser.add_argument(
        "-f", "--follow", action="store_true", help="with --address: show the log until the end"
    )


def execute(arguments: argparse.Namespace) -> Result:
    if arguments.address is not None:
        return resume_job(arguments)
    from latentlm_platform.commands.results import perform
    from latentlm_platform.commands.sweep_results import perform_sweep
    from latentlm_platform.errors import UserError
    from latentlm_platform.experiment.files import experiment_key, load_experiment
    from latentlm_platform.pipeline import STAGES, Request
    from latentlm_platform.runs import find_run, reap

    reap()
    record = find_run(arguments.run)
    experiment = load_experiment(record.source, overrides=record.overrides)
    if not record.key.startswith(experiment_key(experiment)):
        raise UserError(
            f"{record.source} has changed since run {record.key} was started: undo the change,"
            f" or start the new experiment with `latentlm run {record.source}`"
        )
    go_on = perform if experiment.sweep is None else perform_sweep
    return go_on(
        Request(
            experiment,
            source=record.source,
            overrides=record.overrides,
            until=record.until or STAGES[-1],
            named=record,
            trained=find_run(record.trained) if record.trained else None,
            verbose=arguments.verbose,
        )
    )
