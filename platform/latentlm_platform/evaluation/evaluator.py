"""An evaluation: the tasks that `evaluate.tasks` lists, on actors of Ray, and what they found.

No task is known here but by its entry in TASKS.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latentlm_platform.corpora.splits import Splits
from latentlm_platform.evaluation.actor_pool import EvaluatorPool
from latentlm_platform.evaluation.exposure import Exposure
from latentlm_platform.evaluation.generation import Generation
from latentlm_platform.evaluation.judge import start_judge
from latentlm_platform.evaluation.reconstruction import Reconstruction
from latentlm_platform.evaluation.references import shared_references
from latentlm_platform.evaluation.task import Progress, Rows, Scores, Shown, Subject, Task
from latentlm_platform.experiment.sections import Experiment

# By their names in `evaluate.tasks`, in the order in which they are done: generation is compared
# with what reconstruction found.
TASKS: dict[str, Task[Any]] = {
    "reconstruction": Reconstruction(),
    "generation": Generation(),
    "exposure": Exposure(),
}


@dataclass
class ScaleFindings:
    """What was found at one CFG scale: metrics, pictures (name → file), tables (name → rows)."""

    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Rows] = field(default_factory=dict)


@dataclass
class Evaluation:
    """All that was found of a model: what the scales share, then each scale's own."""

    scales: dict[float, ScaleFindings]
    shared: dict[str, float] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def add(self, scores: Scores, shown: Shown) -> None:
        """What a task found."""
        self.shared |= scores.shared
        for scale, metrics in scores.by_scale.items():
            self.scales[scale].metrics |= metrics
        for scale, pictures in shown.pictures.items():
            self.scales[scale].pictures |= pictures
        for scale, tables in shown.tables.items():
            self.scales[scale].tables |= tables
        self.files += shown.files

    def metrics_at(self, cfg_scale: float) -> dict[str, float]:
        """The flat metrics at one scale, shared ones included."""
        return self.shared | self.scales[cfg_scale].metrics

    def facts(self) -> dict[str, Any]:
        """What MLflow is told of an evaluation, also when it is used again: `by_cfg_scale` is
        metrics, `shown` pictures and tables of each scale, `files` those of all together."""
        named = {f"{scale:g}": scale for scale in self.scales}
        shown = {
            name: {"pictures": self.scales[s].pictures, "tables": self.scales[s].tables}
            for name, s in named.items()
        }
        metrics = {name: self.metrics_at(scale) for name, scale in named.items()}
        return {"by_cfg_scale": metrics, "shown": shown, "files": self.files}


def cfg_scales(experiment: Experiment) -> tuple[float, ...]:
    """sample.cfg_scale and evaluate.cfg_scales, sorted, each once."""
    scales = {float(experiment.sample.cfg_scale), *map(float, experiment.evaluate.cfg_scales)}
    return tuple(sorted(scales))


def chosen_tasks(experiment: Experiment) -> list[Task[Any]]:
    """The tasks that the experiment lists and that there is something to do for, in order."""
    listed = (task for name, task in TASKS.items() if name in experiment.evaluate.tasks)
    return [task for task in listed if task.applies(experiment)]


class Evaluator:
    """Evaluates one exported model of an experiment on Ray actors."""

    def __init__(
        self, experiment: Experiment, *, export: Path, codec: str, splits: Splits, folder: Path
    ) -> None:
        scales = cfg_scales(experiment)
        self.subject = Subject(experiment, export, codec, splits, folder, scales)
        self.tasks = chosen_tasks(experiment)

    @property
    def items(self) -> int:
        """What the progress bar counts to."""
        return sum(task.items(self.subject) for task in self.tasks)

    def run(self, pool: EvaluatorPool, *, on_progress: Progress) -> Evaluation:
        """Do every task; what they show is written into the folder."""
        subject = self._prepared(pool)
        found = Evaluation({scale: ScaleFindings() for scale in subject.cfg_scales})
        before = 0
        for task in self.tasks:
            generated = task.generate(subject, on_progress=_after(before, on_progress))
            before += task.items(subject)
            scores = task.score(subject, generated, shared=found.shared)
            found.add(scores, task.show(subject, generated))
        return found

    def _prepared(self, pool: EvaluatorPool) -> Subject:
        """The subject with what its tasks need; a judge is trained beside the references."""
        import ray

        subject, needs = self.subject, [task.needs for task in self.tasks]
        subject.folder.mkdir(parents=True, exist_ok=True)
        if not self.tasks:
            return subject
        actors = pool.actors(subject.experiment)
        ray.get([actor.use_export.remote(subject.export) for actor in actors])
        subject, waited_for = replace(subject, actors=actors), None
        if any(need.judge for need in needs):
            waited_for = start_judge(subject.experiment, subject.splits)
        if any(need.references for need in needs):
            references = shared_references(subject.experiment, subject.splits, actors)
            subject = replace(subject, references=references)
        if waited_for is not None:
            judge = ray.get(waited_for)
            ray.get([actor.use_judge.remote(judge) for actor in actors])
            subject = replace(subject, judge=judge)
        return subject


def _after(before: int, on_progress: Progress) -> Progress:
    """The progress of a task, told behind that of those before it."""
    return lambda done: on_progress(before + done)
