"""The corpora of a run: fetched, opened, looked at, and refused before anything is computed."""

from collections.abc import Callable

from latentlm_platform.corpora.bad_records import BadRecords
from latentlm_platform.corpora.locating import require_there
from latentlm_platform.corpora.named import ensure
from latentlm_platform.corpora.splits import Splits, open_splits, survey
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.tracking.client import TrackedRun

HOPELESS = 0.5  # bad share of a sample at which nothing is begun; the exact count comes later
SMALLEST_HELD_OUT = 4  # two halves with a covariance each


def fetch_corpora(experiment: Experiment, say: Callable[[str], None]) -> None:
    """Fetch named corpora that are missing here; UserError where nothing is. Needs no Ray."""
    corpus = experiment.corpus
    for source in filter(None, (corpus.source, corpus.held_out_source)):
        require_there(ensure(source, progress=say))


def open_corpora(experiment: Experiment, parent: TrackedRun) -> Splits:
    """Index them and look at a sample; MLflow is told of the corpus.

    UserError where most of the sample is bad or too little is held out.
    """
    corpus = experiment.corpus
    splits = open_splits(corpus, seed=experiment.seed)
    index = splits.train.index
    seen, bad = survey(splits.train)
    if len(bad) > max(HOPELESS, corpus.max_bad_fraction) * seen:
        BadRecords.listed(bad, split="train").log(parent)
        raise UserError(
            f"{len(bad)} of {seen} records sampled from {corpus.source} cannot be used (first:"
            f" {bad[0].key}: {bad[0].reason}), far more than corpus.max_bad_fraction"
            f" = {corpus.max_bad_fraction:g}; repair the corpus",
            exit_code=1,
        )
    _require_held_out(experiment, splits)
    parent.log_corpus(
        corpus.source,
        digest=index.digest,
        source=index.source,
        profile={
            "records": index.record_count,
            "classes": corpus.classes,
            "held_out": int(splits.held_out.chunk_sizes.sum()),
        },
    )
    return splits


def _require_held_out(experiment: Experiment, splits: Splits) -> None:
    held_out = int(splits.held_out.chunk_sizes.sum())
    wanted = max(SMALLEST_HELD_OUT, experiment.train.workers)
    if held_out < wanted:
        raise UserError(
            f"{held_out} images of {experiment.corpus.source} are held out, fewer than {wanted}:"
            " raise corpus.held_out_fraction or name corpus.held_out_source"
        )
    trained, lanes = int(splits.train.chunk_sizes.sum()), experiment.corpus.lanes
    if trained < lanes:
        raise UserError(
            f"{trained} records of {experiment.corpus.source} are trained on, fewer than"
            f" corpus.lanes = {lanes}: set corpus.lanes to a smaller number"
        )
