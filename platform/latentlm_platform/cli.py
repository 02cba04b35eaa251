"""The command line: `latentlm COMMAND …`. Each command lives in `commands/`."""

import argparse
import contextlib
import importlib
import json
import math
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from latentlm_platform.commands import Result
from latentlm_platform.errors import UserError


class Command(NamedTuple):
    """Where a command lives and what it is for."""

    module: str
    help: str


COMMANDS = {
    "validate": Command("validate", "check an experiment file; every mistake at once"),
    "plan": Command("plan", "what a run needs against what the cluster has"),
    "run": Command("run", "do what is missing: codec, latents, model, evaluation"),
    "sweep": Command("sweep", "run the points of a sweep that are missing, and read the result"),
    "resume": Command("resume", "go on with an interrupted run or sweep"),
    "stop": Command("stop", "end a run cleanly, with a checkpoint"),
    "status": Command("status", "how far a run is"),
    "list": Command("list_runs", "every run on this machine"),
    "submit": Command("submit", "send an experiment or a sweep to a Ray cluster"),
    "logs": Command("logs", "the log of a submitted run, to its end"),
    "cluster": Command("cluster", "a Ray cluster of this machine alone: up, down"),
    "compare": Command("compare", "two runs side by side"),
    "sample": Command("sample", "generate images from a finished run"),
    "evaluate": Command("evaluate", "score a finished run again"),
    "preview": Command("preview", "decoded samples and class counts of a corpus"),
    "corpora": Command("corpora", "public corpora by name: list, fetch"),
    "evaluators": Command("evaluators", "judges that are installed apart: list, fetch"),
    "schema": Command("schema", "JSON Schema of experiment files, for editors"),
    "dashboards": Command("dashboards", "views and reports: list, apply, diff, open, report"),
    "ui": Command("ui", "open MLflow on this machine with the comparison views"),
    "bench": Command("bench", "measure speed against the libraries one would use instead"),
    "doctor": Command("doctor", "check packages, cores, memory, compiler, Ray, MLflow"),
}

INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    top = argparse.ArgumentParser(
        prog="latentlm",
        description="Next-token diffusion experiments: one YAML from a raw corpus to results.",
        epilog="Start with: latentlm run experiments/quickstart.yaml",
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        module = importlib.import_module(f"latentlm_platform.commands.{command.module}")
        sub = commands.add_parser(
            name,
            help=command.help,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument(
            "--json", metavar="PATH", help="also write what was found as JSON; - is standard output"
        )
        sub.add_argument(
            "-v", "--verbose", action="store_true", help="show the logs of Ray and DeepSpeed too"
        )
        module.configure(sub)
        sub.set_defaults(execute=module.execute)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is the command's."""
    arguments = parser().parse_args(argv)
    if arguments.version:
        from importlib.metadata import version

        print(version("latentlm"))
        return 0
    if arguments.command is None:
        parser().print_help()
        return 0
    try:
        return _answer(arguments)
    except BrokenPipeError:  # whoever read our output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _answer(arguments: argparse.Namespace) -> int:
    with _only_json_on_stdout(arguments.json == "-") as stdout:
        result = _execute(arguments)
        if arguments.json is not None and not _write_json(result.report, arguments.json, stdout):
            return result.exit_code or 2
    if result.then is not None:
        result.then()
    return result.exit_code


def _execute(arguments: argparse.Namespace) -> Result:
    try:
        result: Result = arguments.execute(arguments)
        return result
    except BrokenPipeError:
        raise
    except UserError as error:
        print(f"latentlm {arguments.command}: {error}", file=sys.stderr)
        return Result({"error": str(error), **error.report}, error.exit_code)
    except Exception as error:  # a bug of ours: the whole trace, and still a report for programs
        traceback.print_exc()
        sentence = f"{type(error).__name__}: {error}"
        print(f"latentlm {arguments.command}: {sentence}", file=sys.stderr)
        return Result({"error": sentence, "status": "FAILED"}, 1)
    except KeyboardInterrupt:
        print(f"latentlm {arguments.command}: interrupted", file=sys.stderr)
        return Result({"error": "interrupted"}, INTERRUPTED)


@contextlib.contextmanager
def _only_json_on_stdout(only_json: bool) -> Iterator[TextIO]:
    """With `--json -`, everything meant for a person goes to standard error, also from children."""
    if not only_json:
        yield sys.stdout
        return
    sys.stdout.flush()
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield kept
    finally:
        kept.flush()
        os.dup2(kept.fileno(), 1)
        kept.close()


def _write_json(report: Any, path: str, stdout: TextIO) -> bool:
    text = json.dumps(_finite(report), indent=2, sort_keys=True, default=str, allow_nan=False)
    if path == "-":
        print(text, file=stdout)
        return True
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        print(f"latentlm: --json {path} cannot be written: {error.strerror}", file=sys.stderr)
        return False
    return True


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


if __name__ == "__main__":
    sys.exit(main())
