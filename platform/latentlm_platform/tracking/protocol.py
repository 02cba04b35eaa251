"""The forms in which MLflow takes values, and the limits of its protocol."""

import json
import math
from typing import Any

PARAMETERS_A_CALL = 100  # limits of MLflow's protocol
METRICS_A_CALL = 1000
PARAMETER_CHARACTERS = 6000
TAG_CHARACTERS = 5000
DIGEST_CHARACTERS = 36


def metric_rows(metrics: dict[str, float], *, step: int, time_ms: int) -> list[Any]:
    """MLflow's metrics of one step. Infinities become NaN, a visible gap in a chart: MLflow would
    store them as ±1.8e308, which flattens everything else."""
    from mlflow.entities import Metric

    return [
        Metric(name, float(value) if math.isfinite(value) else math.nan, time_ms, step)
        for name, value in metrics.items()
    ]


def flatten(parameters: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} → {"a.b": "1"}; lists and numbers are written as JSON."""
    flat: dict[str, str] = {}
    for name, value in parameters.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def shortened(value: Any, characters: int) -> str:
    """As text of at most so many characters; what is cut ends in an ellipsis."""
    text = str(value)
    return text if len(text) <= characters else text[: characters - 1] + "…"


def chunks(rows: list[Any], size: int) -> list[list[Any]]:
    """Lists of at most `size` rows."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
