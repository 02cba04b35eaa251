"""What the metrics are called, in which unit, and whether less or more of them is better.

Scores from stand-ins keep their full names: `frechet_efficientnet_lite0` is a Fréchet distance on
EfficientNet-Lite0's features, is not FID, and never stands in a column with the paper's FID.
"""

import math
from typing import Any, Literal

Mode = Literal["min", "max"]

LESS_IS_BETTER = frozenset(
    {
        *("bias", "cer", "collapsed", "distance", "error", "exposure", "frechet", "loss"),
        *("perplexity", "seconds", "wer"),
    }
)
TITLES = {  # beginning of a name → (title, unit)
    "generated_accuracy": ("share of samples classified as asked", ""),
    "real_accuracy": ("share of real images classified as labelled", ""),
    "frechet_": ("Fréchet distance, not FID", ""),
    "inception_style_": ("inception-style score, not IS", ""),
    "reconstruction_psnr": ("PSNR of the codec's reconstructions", "dB"),
    "reconstruction_ssim": ("SSIM of the codec's reconstructions", ""),
    "sampling_cpu_seconds_per_image": ("CPU time to generate an image", "s"),
    "exposure_bias": ("exposure bias", ""),
    "validation_loss": ("validation loss", ""),
    "items_per_s": ("items a second", "1/s"),
    "wer": ("word error rate", ""),
    "perplexity": ("perplexity", ""),
}
FIRST_CHOICES = ("generated_accuracy", "frechet_", "wer", "perplexity", "validation_loss")
PARTS = ("_low", "_high", "_floor", "_images")


def titled(metric: str) -> str:
    """`generated_accuracy (share of samples classified as asked)`: its name and what it is."""
    title, unit = described(metric)
    inside = ", ".join(filter(None, (title, f"in {unit}" if unit else "")))
    return f"{metric} ({inside})" if inside else metric


def described(metric: str) -> tuple[str, str]:
    """Title and unit, empty where unknown."""
    for beginning, known in TITLES.items():
        if metric.startswith(beginning):
            return known
    return ("seconds", "s") if metric.endswith("_seconds") else ("", "")


def better(metric: str, mode: str | None = None) -> Mode:
    """Whether less or more is better: as the sweep says, else by the words of the name."""
    if mode == "min" or mode == "max":
        return "min" if mode == "min" else "max"
    return "min" if set(metric.split("_")) & LESS_IS_BETTER else "max"


def main_metric(names: set[str]) -> str | None:
    """The metric that a study without one of its own is read by."""
    for choice in FIRST_CHOICES:
        fitting = sorted(n for n in names if n.startswith(choice) and not n.endswith(PARTS))
        if fitting:
            return min(fitting, key=len)
    return None


def shown_number(value: float | None, digits: int = 4) -> str:
    """Four significant digits, three below 1; "–" for no value, "not finite" for NaN and ∞."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.{digits - 1}e}"
    whole = 1
    if value != 0:
        whole += math.floor(math.log10(abs(value))) + (0.1 <= abs(value) < 1)
    return f"{value:,.{max(0, digits - whole)}f}"


def shown_value(value: Any) -> str:
    """A swept value as a table shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else str(value)


def shown_seconds(seconds: float | None) -> str:
    """`1 h 2 min`, `3.4 s`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
