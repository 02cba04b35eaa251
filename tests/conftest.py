"""What tests ask of Ray, which reads it from the environment of whoever starts it."""

import os

os.environ |= {
    "RAY_worker_niceness": "0",  # at 15, Ray's own, its workers starve beside other tests
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # and with it how soon a training's end is seen
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process a training, for clouds
}
