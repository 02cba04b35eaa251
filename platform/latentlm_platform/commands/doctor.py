"""Check this machine: packages, cores, memory, disk, compiler, DeepSpeed, Ray, MLflow.

    latentlm doctor
    latentlm doctor --build      # also compile DeepSpeed's communication op, once

Exit code 1 where something fails; a warning does not.
"""

import argparse

from latentlm_platform.commands import Result


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--build", action="store_true", help="compile DeepSpeed's communication op (45 s, once)"
    )


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.planning.doctor import examine

    checks = []
    for check in examine(build=arguments.build):
        print(check, flush=True)
        checks.append(check)
    failed = any(check.state == "fail" for check in checks)
    return Result({"ok": not failed, "checks": [c._asdict() for c in checks]}, int(failed))
