"""What a run needs against what the cluster has; neither corpus nor weights are read.

    latentlm plan experiments/quickstart.yaml
    latentlm plan experiments/quickstart.yaml --set train.workers=4 --json -

Exit code 3 where the run does not fit, with what to change; the JSON is written all the same.
"""

import argparse
import sys

from latentlm_platform.commands import Result
from latentlm_platform.commands.validate import add_overrides

DOES_NOT_FIT = 3


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="experiment YAML")
    add_overrides(parser)


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.experiment.files import load_experiment

    experiment = load_experiment(arguments.file, overrides=arguments.overrides)
    from latentlm_platform.planning.plan import make_plan, plan_table

    plan = make_plan(experiment)
    print(f"{arguments.file}: {experiment.name!r}, key {plan.key}\n{plan_table(plan)}")
    for problem in plan.problems:
        print(f"latentlm plan: {problem}", file=sys.stderr)
    return Result(plan.as_report(), 0 if plan.fits else DOES_NOT_FIT)
