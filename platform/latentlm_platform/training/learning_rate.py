"""The learning rate of a step: a linear warm-up, then a cosine."""

import math

from latentlm_platform.experiment.sections import Optimizer


def learning_rate_at(step: int, steps: int, optimizer: Optimizer) -> float:
    """Linear warm-up, then a cosine from the peak to its final fraction; `step` counts from 0.

    The cosine ends at `steps`, or at `optimizer.schedule_steps`, where training may stop short.
    """
    steps = optimizer.schedule_steps or steps
    if step < optimizer.warmup_steps:
        return optimizer.learning_rate * (step + 1) / optimizer.warmup_steps
    progress = (step - optimizer.warmup_steps) / max(1, steps - optimizer.warmup_steps)
    floor = optimizer.final_learning_rate_fraction
    share = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return optimizer.learning_rate * share
