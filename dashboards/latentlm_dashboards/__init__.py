"""What people compare: saved MLflow views as code, reports, runs side by side. Reads MLflow only.

The public face, imported lazily so that naming this package costs nothing: `apply_views` puts the
views of `dashboards/views/` into an experiment, `diff_views` says what somebody changed there,
`write_report` makes one file of a run or a sweep, `compare_runs` answers `latentlm compare`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentlm_dashboards.applying import AppliedView, apply_views, tracked_experiments
    from latentlm_dashboards.report import Report, write_report
    from latentlm_dashboards.runs import Comparison, RunRecord, compare_runs, connect, find_run
    from latentlm_dashboards.view import View, view_names
    from latentlm_dashboards.view_difference import ViewDifference, diff_views
    from latentlm_dashboards.view_file import shipped_views, views_about

_HOMES = {
    "AppliedView": "applying",
    "Comparison": "runs",
    "Report": "report",
    "RunRecord": "runs",
    "View": "view",
    "ViewDifference": "view_difference",
    "apply_views": "applying",
    "compare_runs": "runs",
    "connect": "runs",
    "diff_views": "view_difference",
    "find_run": "runs",
    "shipped_views": "view_file",
    "tracked_experiments": "applying",
    "view_names": "view",
    "views_about": "view_file",
    "write_report": "report",
}

__all__ = [
    "AppliedView",
    "Comparison",
    "Report",
    "RunRecord",
    "View",
    "ViewDifference",
    "apply_views",
    "compare_runs",
    "connect",
    "diff_views",
    "find_run",
    "shipped_views",
    "tracked_experiments",
    "view_names",
    "views_about",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"latentlm_dashboards has no {name}")
    return getattr(importlib.import_module(f"latentlm_dashboards.{_HOMES[name]}"), name)
