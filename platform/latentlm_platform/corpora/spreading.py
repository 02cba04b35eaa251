"""Work on many files at once: over Ray where this process is part of a cluster, else in threads."""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from latentlm_platform.errors import own_error

TASK_CPUS = 0.5
RETRIES = 16  # of a process that died: a record that kills its decoder takes a few to be known
THREADS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of every item, results in the items' order, a bounded number of them at once.

    `function` and items travel to other processes: they are picklable and know no open files.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        with ThreadPoolExecutor(THREADS) as pool:
            yield from _ordered(items, lambda i: pool.submit(function, i), _result, 2 * THREADS)
        return
    task = ray.remote(_call).options(num_cpus=TASK_CPUS, max_retries=RETRIES)
    shared = ray.put(function)
    most = max(THREADS, int(2 * ray.cluster_resources().get("CPU", 1) / TASK_CPUS))
    yield from _ordered(items, lambda item: task.remote(shared, item), _fetch, most)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)  # what Ray is given is a function; partials and bound methods are not


def _ordered(
    items: Iterable[Item],
    start: Callable[[Item], Any],
    finish: Callable[[Any], Result],
    most: int,
) -> Iterator[Result]:
    running: deque[Any] = deque()
    remaining = iter(items)
    while True:
        running.extend(start(item) for item in itertools.islice(remaining, most - len(running)))
        if not running:
            return
        yield finish(running.popleft())


def _result(future: Any) -> Any:
    return future.result()


def _fetch(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise own_error(error) or error from None
