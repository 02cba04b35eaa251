"""What people compare: saved MLflow views as code, and runs side by side. Reads MLflow only.

The public face, imported lazily so that naming this package costs nothing:
`apply_views` puts the views of `dashboards/views/` into an experiment and returns their links,
`find_run` and `compare_runs` answer `latentlm compare`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentlm_dashboards.runs import (
        Comparison,
        RunRecord,
        compare_runs,
        connect,
        find_run,
    )
    from latentlm_dashboards.saved_views import apply_views
    from latentlm_dashboards.view import view_names

_HOMES = {
    "Comparison": "runs",
    "RunRecord": "runs",
    "apply_views": "saved_views",
    "compare_runs": "runs",
    "connect": "runs",
    "find_run": "runs",
    "view_names": "view",
}

__all__ = [
    "Comparison",
    "RunRecord",
    "apply_views",
    "compare_runs",
    "connect",
    "find_run",
    "view_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"latentlm_dashboards has no {name}")
    return getattr(importlib.import_module(f"latentlm_dashboards.{_HOMES[name]}"), name)
