"""Two runs side by side: the settings that differ, and every metric with its difference.

A run is named by its key, the beginning of its key, its name, or its MLflow run id:

    latentlm compare quickstart emoji
    latentlm compare 3f9a 81c0 --json -

A metric shows its 95 % interval in brackets where one was measured; the difference is B - A.
"""

import argparse
import json
import urllib.parse
from typing import TYPE_CHECKING, Any

from latentlm_platform.commands import Result
from latentlm_platform.errors import UserError

if TYPE_CHECKING:
    from latentlm_dashboards import Comparison, RunRecord

LOCAL_PAGES = "http://127.0.0.1:5000"
WIDEST_NAME = 60


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="key, beginning of a key, name or MLflow run id")
    parser.add_argument("b", metavar="B", help="the run it is compared with")
    parser.add_argument("--uri", help="MLflow store; default: the database in $LATENTLM_HOME")


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_dashboards import compare_runs, connect, find_run
    from latentlm_platform.tracking.store import existing_store, explained

    uri = existing_store(arguments.uri)
    with explained(uri):
        client = connect(uri)
        try:
            runs = [find_run(client, name) for name in (arguments.a, arguments.b)]
        except LookupError as error:
            raise UserError(str(error)) from None
    comparison = compare_runs(*runs)
    base = uri if uri.startswith("http") else LOCAL_PAGES
    report = _report(comparison, base.rstrip("/"))
    _print(comparison, report["link"], needs_server=base == LOCAL_PAGES)
    return Result(report)


def _report(comparison: "Comparison", base: str) -> dict[str, Any]:
    runs = (comparison.a, comparison.b)
    query = {
        "runs": json.dumps([run.run_id for run in runs]),
        "experiments": json.dumps(list(dict.fromkeys(run.experiment_id for run in runs))),
    }
    return {
        "a": _introduced(comparison.a, base),
        "b": _introduced(comparison.b, base),
        "link": f"{base}/#/compare-runs?{urllib.parse.urlencode(query)}",
        "parameters": {path: list(pair) for path, pair in comparison.parameters.items()},
        "metrics": {
            name: {**pair._asdict(), "difference": pair.difference}
            for name, pair in comparison.metrics.items()
        },
    }


def _introduced(run: "RunRecord", base: str) -> dict[str, str]:
    return {
        "run_id": run.run_id,
        "key": run.key,
        "name": run.name,
        "status": run.status,
        "link": f"{base}/#/experiments/{run.experiment_id}/runs/{run.run_id}",
    }


def _print(comparison: "Comparison", link: str, *, needs_server: bool) -> None:
    a, b = comparison.a, comparison.b
    title = ["", f"A: {a.name} {a.key[:12]}", f"B: {b.name} {b.key[:12]}", "B - A"]
    rows = [["status", a.status, b.status, ""]]
    rows += [[path, _text(p[0]), _text(p[1]), ""] for path, p in comparison.parameters.items()]
    if not comparison.parameters:
        rows.append(["settings", "the same", "the same", ""])
    for name, pair in comparison.metrics.items():
        values = (_measured(pair.a, pair.a_interval), _measured(pair.b, pair.b_interval))
        rows.append([name, *values, "" if pair.difference is None else f"{pair.difference:+.4g}"])
    _print_table([title, *rows])
    print(f"\n{link}{'  (pages: latentlm ui)' if needs_server else ''}")


def _print_table(rows: list[list[str]]) -> None:
    widths = [min(WIDEST_NAME, max(map(len, column))) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


def _text(value: str | None) -> str:
    if value is None:
        return "-"
    return value if len(value) <= WIDEST_NAME else value[: WIDEST_NAME - 1] + "…"


def _measured(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "")
