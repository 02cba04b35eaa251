"""Two real ZeRO ranks of which one never sees a latent and the other never a word.

No collective may wait for a module that the other rank did not call, and the losses must be those
of one process that sees both.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("two_ranks.py")
ROOT = SCRIPT.parents[3]
LIMIT_S = 480


def losses(*cases: str, ranks: int) -> Any:
    """The losses by step of each case: model (text, DiT, codes), ZeRO stage, r for recomputed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = os.pathsep.join(str(ROOT / p) for p in ("", "platform", "tests"))
    environment = os.environ | {
        "PYTHONPATH": path,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *cases],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        printed = [process.communicate(timeout=LIMIT_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(printed)[-3000:]
    line = next(line for line in printed[0].splitlines() if line.startswith("LOSSES "))
    return json.loads(line.removeprefix("LOSSES "))


def test_ranks_with_one_modality_each_follow_one_process() -> None:
    alone = dict(zip("tdc", losses("t0", "d0", "c0", ranks=1), strict=True))
    cases = ("t1", "t2", "t3", "t3r", "d1", "d3r", "c3r")
    for case, together in zip(cases, losses(*cases, ranks=2), strict=True):
        single = alone[case[0]]
        assert single[-1]["loss"] < single[0]["loss"]
        for ours, wanted in zip(together, single, strict=True):
            assert ours.keys() == wanted.keys()
            for name in ours.keys() & {"loss", "loss_diffusion", "loss_text", "loss_stop"}:
                assert ours[name] == pytest.approx(wanted[name], rel=1e-3), (name, case)
