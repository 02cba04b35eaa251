"""The Ray Data graphs of training: records → decode → (encode) → micro-batches, in exact order.

Each Train worker runs its own small graph over its own share of every global batch, from the step
it resumes at. A row is one micro-batch. Nothing is materialised: a few tasks run ahead, the rest
has not been read yet.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latentlm_platform.batches.ordering import Rows, SampleOrder, Share
from latentlm_platform.corpora.splits import Split
from latentlm_platform.experiment.sections import Latents
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.wire_rows import Arrays, Row, pack_row, unpack_row

RECORDS_PER_TASK = 2048
DATA_TASK_CPUS = 0.5
SCHEDULER_PAUSE_S = 0.03


@dataclass(frozen=True)
class StreamSettings:
    """What makes a worker's stream: the order, its share, its steps, and the flips."""

    order: SampleOrder
    share: Share
    first_step: int
    stop_step: int
    seed: int
    flip: bool
    readers: int

    @property
    def steps_per_task(self) -> int:
        return max(1, RECORDS_PER_TASK // self.share.batch_size)

    def micro_batches(self, task: int) -> Iterator[tuple[int, Rows]]:
        """(step, rows) of every micro-batch that a read task produces."""
        first = self.first_step + task * self.steps_per_task
        for step in range(first, min(first + self.steps_per_task, self.stop_step)):
            for start, stop in self.share.positions(step):
                yield step, self.order.rows(start, stop)

    @property
    def task_count(self) -> int:
        return -(-(self.stop_step - self.first_step) // self.steps_per_task)

    def mirrored(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which rows are mirrored: a coin keyed by (seed, epoch, id)."""
        if not self.flip:
            return np.zeros(len(rows.ids), np.bool_)
        import torch

        from latentlm.randomness import Draw, RowNoise

        ids, epochs = torch.from_numpy(rows.ids), torch.from_numpy(rows.epochs)
        coin = RowNoise(seed=self.seed, ids_B=ids, epochs_B=epochs).uniform(Draw.FLIP, 1)
        mirrored: npt.NDArray[np.bool_] = (coin[:, 0] < 0.5).numpy()
        return mirrored


def stream_pixels(settings: StreamSettings, split: Split) -> Iterator[Arrays]:
    """Micro-batches of `pixels` uint8 [m, Y, X, C], `labels`, `ids`, `epochs`."""
    return _iterate(_read(settings, _PixelReader(settings, split)))


def stream_cached(settings: StreamSettings, cache: LatentCache, split: str) -> Iterator[Arrays]:
    """Micro-batches of `mean` (and `std`) float32 [m, N, Z] from the latent cache."""
    return _iterate(_read(settings, _LatentReader(settings, cache, split)))


def stream_encoded(
    settings: StreamSettings, split: Split, *, codec_folder: Path, latents: Latents
) -> Iterator[Arrays]:
    """The same micro-batches encoded on the way, by an actor pool of this worker's own."""
    import ray.data

    from latentlm_platform.latents.encoder import EncoderActor

    pixels = _read(settings, _PixelReader(settings, split))
    encoded = pixels.map(
        EncoderActor,
        fn_constructor_args=(codec_folder,),
        fn_constructor_kwargs={"batch_size": latents.batch_size, "orientations": 1},
        compute=ray.data.ActorPoolStrategy(size=latents.actors),
        num_cpus=latents.cpus_per_actor,
        num_gpus=latents.gpus_per_actor or None,
    )
    for arrays in _iterate(encoded):
        yield {name: a[:, 0] if name in ("mean", "std") else a for name, a in arrays.items()}


class _PixelReader:
    """A read task: number → rows of pixels, mirrored where the coin says so."""

    def __init__(self, settings: StreamSettings, split: Split) -> None:
        self.settings, self.split = settings, split

    def __call__(self, task: Row) -> list[Row]:
        batches = list(self.settings.micro_batches(int(task["id"])))
        together = Rows(
            *(np.concatenate(c) for c in zip(*(rows for _, rows in batches), strict=True))
        )
        signals = self.split.decode_rows(together)
        produced, start = [], 0
        for step, rows in batches:
            stop = start + len(rows.ids)
            pixels = signals.pixels[start:stop].copy()
            mirrored = self.settings.mirrored(rows)
            pixels[mirrored] = pixels[mirrored][:, :, ::-1]
            arrays: Arrays = {"pixels": pixels, "labels": signals.labels[start:stop]}
            produced.append(_labelled(step, rows, arrays))
            start = stop
        return produced


class _LatentReader:
    """A read task: number → rows of cached posteriors of the image or its mirror image."""

    def __init__(self, settings: StreamSettings, cache: LatentCache, split: str) -> None:
        self.settings, self.cache, self.split = settings, cache, split

    def __call__(self, task: Row) -> list[Row]:
        return [
            self._read(step, rows) for step, rows in self.settings.micro_batches(int(task["id"]))
        ]

    def _read(self, step: int, rows: Rows) -> Row:
        found = self.cache.read_rows(self.split, rows, mirrored_B=self.settings.mirrored(rows))
        arrays: Arrays = {"mean": found.mean_BNZ, "labels": found.labels_B}
        if found.std_BNZ is not None:
            arrays["std"] = found.std_BNZ
        return _labelled(step, rows, arrays)


def _labelled(step: int, rows: Rows, arrays: Arrays) -> Row:
    arrays |= {"step": np.array([step]), "ids": rows.ids, "epochs": rows.epochs}
    return pack_row(arrays)


def _read(settings: StreamSettings, reader: _PixelReader | _LatentReader) -> Any:
    """Read tasks in order, a few ahead of the worker that they read for."""
    import ray.data

    quieten_data()
    count = settings.task_count
    tasks = ray.data.range(count, override_num_blocks=max(1, count))
    pool = ray.data.TaskPoolStrategy(size=settings.readers)
    return tasks.flat_map(reader, num_cpus=DATA_TASK_CPUS, compute=pool)


def _iterate(dataset: Any) -> Iterator[Arrays]:
    for row in dataset.iter_rows():
        yield unpack_row(row)


def quieten_data() -> None:
    """Ordered, quiet Ray Data in this process, whose scheduler leaves the processor to training."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.print_on_execution_start = False
    if _Pace not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(_Pace)
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class _Pace:
    """Ray Data's scheduling loop spins at full speed, holding the GIL, while its output is full.

    A pause in every round gives the core back. On two cores a codec step of 128 images took 0.9 s
    before it, 0.3 s with it. An execution callback is Ray Data's own hook into that loop.
    """

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(SCHEDULER_PAUSE_S)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...
