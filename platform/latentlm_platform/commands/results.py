"""Performing a run for a person: its results table, its links, and what to do next."""

import sys
from pathlib import Path

from latentlm_platform.commands import Result
from latentlm_platform.commands.compare import LOCAL_PAGES
from latentlm_platform.commands.reporting import report_line, written_report
from latentlm_platform.pipeline import Request, execute, run_report
from latentlm_platform.progress import duration
from latentlm_platform.runs import RunRecord
from latentlm_platform.tracking.store import store_uri

VIEW = "cfg_scale"
ALWAYS = (VIEW, "training_health")


def perform(request: Request) -> Result:
    """Execute, apply the comparison views, print what came out."""
    record = execute(request)
    record = record.changed(links=mlflow_links(request, record))
    print(results_table(record))
    report = written_report(request, record) if record.status == "FINISHED" else None
    print(next_steps(request, record, report=report))
    return Result(run_report(record))


def mlflow_links(request: Request, record: RunRecord) -> dict[str, str]:
    """Links into MLflow, those that fit the experiment, the fittest first; all views are applied
    on the way. Tracking never fails a run."""
    try:
        return _applied(request)
    except Exception as error:  # whatever the store does, the results are complete
        print(f"the comparison views could not be applied: {error}", file=sys.stderr)
        return {}


def _applied(request: Request) -> dict[str, str]:
    from latentlm_dashboards import apply_views, views_about

    tracking = request.experiment.tracking
    uri = store_uri(tracking.uri)
    base = uri if uri.startswith("http") else LOCAL_PAGES
    links = {view.name: view.link for view in apply_views(uri, tracking.experiment, base_url=base)}
    fitting = dict.fromkeys((*views_about(request.experiment.reproduces), *ALWAYS))
    return {name: links[name] for name in fitting if links.get(name)}


def results_table(record: RunRecord) -> str:
    """The scores with their intervals, floors and ceilings, one a line."""
    metrics = record.metrics
    lines = [f"\n{record.name}  {record.status}  key {record.key}"]
    for name in sorted(metrics):
        if not name.startswith(SHOWN) or name.endswith(("_low", "_high")):
            continue
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        interval = (
            f"   95 % [{low:.4g}, {high:.4g}]" if low is not None and high is not None else ""
        )
        lines.append(f"  {name:<46} {metrics[name]:>10.4g}{interval}")
    if "run_seconds" in metrics:
        lines.append(f"  took {duration(metrics['run_seconds'])}")
    return "\n".join(lines)


SHOWN = (
    "generated_accuracy",
    "real_accuracy",
    "frechet_",
    "inception_style_",
    "reconstruction_psnr",
    "reconstruction_ssim",
    "validation_loss",
    "bad_records",
    "collapsed_channels",
    "variance_collapsed_channels",
    "exposure_bias",
    "items_per_s_median",
)


def next_steps(request: Request, record: RunRecord, *, report: Path | None = None) -> str:
    """Links and the commands that a person wants now."""
    lines = ["\nLook:", *report_line(report)]
    if record.links:
        if not store_uri(request.experiment.tracking.uri).startswith("http"):
            lines.append("  latentlm ui        opens MLflow on this machine; then")
        order = sorted(record.links, key=lambda name: name != VIEW)
        lines += [f"  {record.links[name]}   ({name})" for name in order]
        lines.append("  latentlm dashboards list    names all the views")
    lines += [
        "Next:",
        f"  latentlm sample {record.key} --cfg-scale 2",
        f"  latentlm run {request.source} --set train.steps=2400",
        f"  latentlm compare {record.key} OTHER",
    ]
    return "\n".join(lines)
