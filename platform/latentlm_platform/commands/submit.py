"""Send an experiment or a sweep to a Ray cluster, over Ray Jobs.

    latentlm submit experiments/quickstart.yaml --address http://head:8265 --follow
    latentlm cluster up && latentlm submit experiments/quickstart.yaml

The same YAML, unchanged, gives the same result as here. Sent twice it is one run; what failed or
was stopped goes on; --new repeats a finished one. Paths are the cluster's: name corpora from
`latentlm corpora list`, or write paths in full. With --follow the exit code is the job's.
"""

import argparse

from latentlm_platform.commands import Result
from latentlm_platform.commands.addressed import add_address
from latentlm_platform.commands.validate import add_overrides


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="experiment YAML")
    add_overrides(parser)
    add_address(parser, default="the cluster of `latentlm cluster up`")
    parser.add_argument(
        "--home", metavar="PATH", help="LATENTLM_HOME on the cluster (default: its head node's)"
    )
    parser.add_argument("--new", action="store_true", help="repeat a finished run from scratch")
    parser.add_argument("-f", "--follow", action="store_true", help="show the log until the end")


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.commands.addressed import connect, follow_job, job_report, say_sent
    from latentlm_platform.errors import UserError
    from latentlm_platform.experiment.files import load_experiment
    from latentlm_platform.submission.submission import submit

    experiment = load_experiment(arguments.file, overrides=arguments.overrides)
    if arguments.home is not None and not arguments.home.startswith(("/", "~")):
        raise UserError(f"--home {arguments.home} is a folder of the cluster: write it in full")
    client = connect(arguments)
    sent = submit(client, experiment, new=arguments.new, home=arguments.home)
    say_sent(client, sent.job, sent=sent.sent)
    if arguments.follow:
        return follow_job(client, sent.job)
    return Result({**job_report(sent.job), "address": client.address, "sent": sent.sent})
