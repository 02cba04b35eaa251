"""Performing a sweep for a person: its table, its findings, its links, and what to do next."""

from pathlib import Path
from typing import Any

from latentlm_platform.commands import Result
from latentlm_platform.commands.reporting import report_line, written_report
from latentlm_platform.commands.results import mlflow_links
from latentlm_platform.pipeline import Request, run_report
from latentlm_platform.progress import duration
from latentlm_platform.runs import RunRecord
from latentlm_platform.sweeps.findings import findings_report, render_findings, render_table
from latentlm_platform.sweeps.sweeping import execute_sweep, failed_lines, rows_of, sweep_findings

SOME_FAILED = 4


def perform_sweep(request: Request, *, retry_failed: bool = False) -> Result:
    """Execute, apply the comparison views, print what came out."""
    record = execute_sweep(request, retry_failed=retry_failed)
    record = record.changed(links=mlflow_links(request, record))
    failed = failed_lines(record)
    print(sweep_text(request, record))
    for line in failed:
        print(f"  failed: {_values(line.values)}: {line.error}")
    report = written_report(request, record) if record.status == "FINISHED" else None
    print(_next_steps(request, record, failed=bool(failed), report=report))
    return Result(_report(request, record), SOME_FAILED if failed else 0)


def sweep_text(request: Request, record: RunRecord) -> str:
    """The table of points and what it says."""
    sweep, rows = request.experiment.sweep, rows_of(record, request.experiment)
    assert sweep is not None
    ended = sum(1 for row in rows if row.metrics)
    lines = [f"\n{record.name}  {record.status}  key {record.key}  {ended} of {len(rows)} points"]
    lines.append(render_table(rows, metric=sweep.metric, replicate=sweep.replicate))
    lines.append(render_findings(sweep_findings(record, request.experiment)))
    if "run_seconds" in record.metrics:
        lines.append(f"  took {duration(record.metrics['run_seconds'])}")
    return "\n".join(lines)


def _report(request: Request, record: RunRecord) -> dict[str, Any]:
    return run_report(record) | {
        "points": [row._asdict() for row in rows_of(record, request.experiment)],
        "failed": [{"values": e.values, "error": e.error} for e in failed_lines(record)],
        "findings": findings_report(sweep_findings(record, request.experiment)),
    }


def _next_steps(request: Request, record: RunRecord, *, failed: bool, report: Path | None) -> str:
    lines = ["\nLook:", *report_line(report)]
    lines += ["  latentlm ui        opens MLflow on this machine; then"]
    lines += [f"  {link}   ({name})" for name, link in record.links.items()]
    if failed:
        lines += ["Next:", f"  latentlm sweep {request.source} --retry failed"]
    return "\n".join(lines)


def _values(values: dict[str, Any]) -> str:
    return ", ".join(f"{path}={value}" for path, value in values.items())
