"""Score a finished run again, with other sampling settings or other scores.

    latentlm evaluate quickstart --set sample.steps=5 --set evaluate.images=500
    latentlm evaluate quickstart --set "evaluate.tasks=[exposure]"

Only the sections `sample` and `evaluate` may change: nothing is trained. Results are kept by their
settings, so the same evaluation is not computed twice.
"""

import argparse

from latentlm_platform.commands import Result
from latentlm_platform.commands.validate import add_overrides


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="key, start of a key, or name")
    add_overrides(parser)


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.commands.results import perform
    from latentlm_platform.errors import UserError
    from latentlm_platform.experiment.files import experiment_key, load_experiment
    from latentlm_platform.pipeline import Request
    from latentlm_platform.runs import find_run, reap

    trained = [o for o in arguments.overrides if not o.startswith(("sample.", "evaluate."))]
    if trained:
        raise UserError(
            f"--set {trained[0]} would change what was trained; `evaluate` takes only sample.… and"
            " evaluate.…: use `latentlm run` for the rest"
        )
    reap()
    record = find_run(arguments.run, having="model")
    unchanged = load_experiment(record.source, overrides=record.overrides)
    if not record.key.startswith(experiment_key(unchanged)):
        raise UserError(
            f"{record.source} has changed since run {record.key} was started: undo the change,"
            f" or train the new experiment with `latentlm run {record.source}`"
        )
    overrides = (*record.overrides, *arguments.overrides)
    return perform(
        Request(
            load_experiment(record.source, overrides=overrides),
            source=record.source,
            overrides=overrides,
            verbose=arguments.verbose,
            trained=record,
        )
    )
