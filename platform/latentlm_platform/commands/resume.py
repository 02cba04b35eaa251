"""Go on with an interrupted run, from its last checkpoint.

    latentlm resume 3f2a
    latentlm resume quickstart

A run is named by its key, the start of its key, or its name.
"""

import argparse

from latentlm_platform.commands import Result


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="key, start of a key, or name")


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.commands.results import perform
    from latentlm_platform.errors import UserError
    from latentlm_platform.experiment_file import experiment_key, load_experiment
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
    return perform(
        Request(
            experiment,
            source=record.source,
            overrides=record.overrides,
            until=record.until or STAGES[-1],
            named=record,
            verbose=arguments.verbose,
        )
    )
