"""Comparison views as code in MLflow's pages, and a report in one file.

    latentlm dashboards list                        what there is, of which figure and table
    latentlm dashboards apply                       save every view in MLflow; prints a link each
    latentlm dashboards apply cfg_scale --experiment sigma
    latentlm dashboards diff                        what somebody changed in the browser, in words
    latentlm dashboards open cfg_scale              save it and open it; --print: link only
    latentlm dashboards report quickstart --output quickstart.html

Applying again changes nothing, and a view that somebody changed in the browser stays as it is.
`list` needs no MLflow. Exit code of `diff`: 0 where all is as shipped, 1 where something differs.
"""

import argparse
import re
import sys
import urllib.request
import webbrowser
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentlm_platform.commands import Result
from latentlm_platform.commands.compare import LOCAL_PAGES
from latentlm_platform.errors import UserError

DIFFERS = 1
STANDINGS = {
    "absent": "{name}: not applied",
    "deleted": "{name}: deleted in the browser; `latentlm dashboards apply {name}` brings it back",
    "older": "{name}: an older version; `latentlm dashboards apply` brings it up to date",
    "changed": "{name}: changed by somebody, and left so; delete it in the browser and apply it by"
    " name to get ours back",
    "copied": "{name}: somebody saved a copy as {title!r}",
}
ANSWER_S = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "apply", "diff", "open", "report"))
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="views (default: all); of `report` a run or sweep"
    )
    parser.add_argument("--experiment", help="MLflow experiment (default: latentlm)")
    parser.add_argument("--uri", help="MLflow store; default: the database in $LATENTLM_HOME")
    parser.add_argument(
        "--pages", metavar="URL", help=f"where its pages are (default: {LOCAL_PAGES}, or --uri)"
    )
    parser.add_argument("--print", action="store_true", help="`open`: no browser, only the link")
    parser.add_argument("--output", metavar="FILE", help="`report`: the file (default: NAME.html)")


def execute(arguments: argparse.Namespace) -> Result:
    for option, action in (("print", "open"), ("output", "report")):
        if getattr(arguments, option) and arguments.action != action:
            raise UserError(
                f"--{option} belongs to `latentlm dashboards {action}`, not to {arguments.action};"
                " leave it out"
            )
    if arguments.action in ("open", "report") and len(arguments.names) != 1:
        what = "a view, see `latentlm dashboards list`"
        raise UserError(
            f"`latentlm dashboards {arguments.action}` takes the name of"
            f" {what if arguments.action == 'open' else 'a run or sweep, see `latentlm list`'};"
            f" {len(arguments.names)} names were given"
        )
    return DOING[arguments.action](arguments)


def _list(arguments: argparse.Namespace) -> Result:
    """One object a view."""
    from latentlm_dashboards import shipped_views

    entries: list[dict[str, Any]] = [
        {
            "name": view.name,
            "title": view.title,
            "reproduces": list(view.reproduces),
            "awaits": view.awaits,
            "kinds": list(dict.fromkeys(chart.kind for chart in view.charts)),
            "charts": len(view.charts),
            "file": view.file,
        }
        for view in shipped_views(arguments.names)
    ]
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        about = ", ".join(entry["reproduces"])
        waits = f"awaits the {entry['awaits']} track" if entry["awaits"] else ""
        said = "; ".join(part for part in (about, waits) if part)
        print(f"{entry['name']:<{width}}  {entry['title']}{f'  ({said})' if said else ''}")
    return Result(entries)


def _apply(arguments: argparse.Namespace) -> Result:
    from latentlm_dashboards import apply_views

    uri, experiment = _store(arguments)
    applied = apply_views(
        uri, experiment, names=arguments.names, base_url=_pages(arguments, uri), with_notes=True
    )
    for view in applied:
        said = {
            "kept": f"{view.link}\n{'':9} somebody changed it; see `latentlm dashboards diff`",
            "deleted": f"in the browser; `latentlm dashboards apply {view.name}` brings it back",
        }
        print(f"{view.outcome:<9} {view.name}: {said.get(view.outcome, view.link)}")
    for note in dict.fromkeys(view.note for view in applied if view.note):
        print(note, file=sys.stderr)
    _say_where_pages_are(arguments, uri)
    return Result([asdict(view) for view in applied])


def _diff(arguments: argparse.Namespace) -> Result:
    from latentlm_dashboards import diff_views

    uri, experiment = _store(arguments)
    differences = diff_views(uri, experiment, names=arguments.names)
    for view in differences:
        if view.words:
            print(STANDINGS[view.standing].format(name=view.name, title=view.title))
            for words in view.words:
                print(f"  {words}")
    shipped = [view for view in differences if view.standing != "copied"]
    same = sum(1 for view in shipped if view.standing == "same")
    print(f"{same} of {len(shipped)} views are as shipped")
    differs = any(view.words for view in differences)
    return Result([asdict(view) for view in differences], DIFFERS if differs else 0)


def _open(arguments: argparse.Namespace) -> Result:
    from latentlm_dashboards import apply_views

    uri, experiment = _store(arguments)
    pages = _pages(arguments, uri)
    (view,) = apply_views(uri, experiment, names=arguments.names, base_url=pages)
    print(view.link)
    if not arguments.print:
        if not _answers(pages):
            raise UserError(
                f"MLflow's pages do not answer at {pages}; start them with `latentlm ui`, or say"
                " with --pages where they are"
            )
        webbrowser.open(view.link)
    return Result(asdict(view))


def _report(arguments: argparse.Namespace) -> Result:
    from latentlm_dashboards import write_report

    uri, _ = _store(arguments)
    (reference,) = arguments.names
    name = re.sub(r"[^\w.-]+", "-", reference).strip("-.") or "report"
    path = Path(arguments.output or f"{name}.html")
    try:
        report = write_report(uri, reference, path, base_url=_pages(arguments, uri))
    except LookupError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    print(f"{report.path}  {report.bytes / 1e6:.1f} MB, {report.images} pictures")
    found = {"path": str(report.path), "bytes": report.bytes, "images": report.images}
    return Result(found)


def _store(arguments: argparse.Namespace) -> tuple[str, str]:
    """The store, which answers, and the experiment's name."""
    from latentlm_platform.experiment.sections import Tracking
    from latentlm_platform.tracking.store import existing_store

    uri = existing_store(arguments.uri)
    return uri, arguments.experiment or Tracking().experiment


def _pages(arguments: argparse.Namespace, uri: str) -> str:
    return str(arguments.pages or (uri if uri.startswith("http") else LOCAL_PAGES)).rstrip("/")


def _say_where_pages_are(arguments: argparse.Namespace, uri: str) -> None:
    if not arguments.pages and not uri.startswith("http"):
        print("`latentlm ui` opens MLflow's pages on this machine", file=sys.stderr)


def _answers(pages: str) -> bool:
    try:
        with urllib.request.urlopen(f"{pages}/health", timeout=ANSWER_S):
            return True
    except (OSError, ValueError):
        return False


DOING: dict[str, Callable[[argparse.Namespace], Result]] = {
    "list": _list,
    "apply": _apply,
    "diff": _diff,
    "open": _open,
    "report": _report,
}
