"""The report of a finished run or sweep: one file in its folder, and in MLflow with it."""

import os
import sys
from pathlib import Path

from latentlm_platform.commands.compare import LOCAL_PAGES
from latentlm_platform.pipeline import Request
from latentlm_platform.runs import RunRecord
from latentlm_platform.tracking.client import TrackedRun, open_tracker

REPORT = "report.html"


def written_report(request: Request, record: RunRecord) -> Path | None:
    """`report.html` in the run's folder and among its artifacts. What fails here fails no run."""
    from latentlm_dashboards import write_report

    path = record.folder / REPORT
    if path.exists() and path.stat().st_mtime >= record.ended_s:
        return path  # of a run that had ended before
    pages = record.tracking_uri if record.tracking_uri.startswith("http") else LOCAL_PAGES
    try:
        write_report(record.tracking_uri, record.run_id, path, base_url=pages)
        tracker = open_tracker(request.experiment.tracking)
        TrackedRun(tracker, record.run_id).log_file(path)
        if lost := tracker.close():
            os.utime(path, (0, 0))  # older than the run: the next command tries again
            print(lost, file=sys.stderr)
    except Exception as error:  # the results are complete without it
        print(
            f"the report could not be written: {error}; `latentlm dashboards report {record.key}`"
            " tries again",
            file=sys.stderr,
        )
        return None
    return path


def report_line(path: Path | None) -> list[str]:
    """A link that opens without a server."""
    return [] if path is None else [f"  {path.resolve().as_uri()}   (the report: opens offline)"]
