"""Ray Data as this platform uses it: ordered, quiet, a bounded number of tasks, rows of one chunk.

Work goes on in legs of at most `LONGEST_LEG` items, one Ray Data set each: the number of tasks,
which Ray Data plans before the first row, grows neither with the corpus nor with the steps of a
run. A task works at a few items, one after another, and gives a row for each as soon as it is
ready. Tasks begin with one item, so that the first rows come soon, and grow, since between two of
them a reader waits a tenth of a second for Ray Data's scheduler; but they stay small, since rows
are wanted in order and who is behind keeps those ahead waiting.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from latentlm_platform.corpora.spreading import TASK_CPUS
from latentlm_platform.latents.wire_rows import Arrays, Row, pack_row, unpack_row

Item = tuple[int, ...]
ITEMS_A_TASK = 8  # at most
LONGEST_LEG = 512  # items
ROW_BYTES = 2**20  # a row is a chunk or more: each is a block of its own
SCHEDULER_PAUSE_S = 0.03


def read_items(items: Sequence[Item], reader: Callable[[Item], Arrays], *, readers: int) -> Any:
    """A Ray Data set of `reader(item)` of a leg, in the order of its items, by `readers` tasks."""
    import ray.data

    _quieten()
    work = [{"items": json.dumps(group)} for group in task_items(items, readers=readers)]
    rows = ray.data.from_items(work, override_num_blocks=len(work))
    pool = ray.data.TaskPoolStrategy(size=readers)
    return map_rows(rows, _Reading(reader), num_cpus=TASK_CPUS, compute=pool)


def task_items(items: Sequence[Item], *, readers: int) -> Iterator[Sequence[Item]]:
    """What each task of a leg reads: 1 item for every reader, then 2, … and fewer at the end."""
    start, size = 0, 1
    while start < len(items):
        for _ in range(readers):
            rest = -(-(len(items) - start) // readers)
            count = min(size, rest)
            if count:
                yield items[start : start + count]
            start += count
        size = min(2 * size, ITEMS_A_TASK)


def map_rows(dataset: Any, function: Any, **options: Any) -> Any:
    """The set of what a function (or a class, in an actor pool) makes of each row, uncopied."""
    return dataset.map_batches(
        function, batch_size=1, batch_format="pyarrow", zero_copy_batch=True, **options
    )


def arrays_of(dataset: Any) -> Iterator[Arrays]:
    """The rows of a set, as they become ready, in order.

    They are copies, so that what waits for its turn does not fill Ray's object store.
    """
    for rows in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for number in range(len(rows)):
            row = unpack_row(rows.slice(number, 1))
            yield {name: array.copy() for name, array in row.items()}


def legs(items: Sequence[Item], *, longest: int = LONGEST_LEG) -> Iterator[Sequence[Item]]:
    """The items in legs, one after another."""
    for start in range(0, len(items), longest):
        yield items[start : start + longest]


@dataclass(frozen=True)
class _Reading:
    reader: Callable[[Item], Arrays]

    def __call__(self, row: Row) -> Iterator[Row]:
        for item in json.loads(row["items"][0].as_py()):
            yield pack_row(self.reader(tuple(item)))


def _quieten() -> None:
    """Ordered, quiet Ray Data in this process, whose scheduler leaves the processor to training."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.target_max_block_size = ROW_BYTES
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
