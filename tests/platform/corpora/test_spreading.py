"""Work over a real Ray: indexes are those made without it, and a deadly record ends in a survey."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from latentlm_platform.corpora import file_groups
from latentlm_platform.corpora.locating import list_files
from latentlm_platform.corpora.spreading import THREADS, spread
from latentlm_platform.errors import UserError
from making_corpora import labels, make_folders, make_parquet, make_tar, opened

SCRIPT = """
import json, sys

def deadly():
    import os, signal
    from latentlm_platform.corpora import records
    from making_corpora import png
    real, killer = records.decode_image, png(5)

    def decode(data, **settings):
        if data == killer:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(data, **settings)

    records.decode_image = decode

import ray
from latentlm_platform.corpora.splits import Split, survey
from latentlm_platform.corpora.spreading import spread
from latentlm_platform.errors import UserError
from making_corpora import corpus, labels, opened

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
         logging_level="ERROR", runtime_env={"worker_process_setup_hook": deadly})
found = {}
for name in ("parquet", "webdataset"):
    found[name] = labels(opened(f"{sys.argv[1]}/{name}"))
seen, bad = survey(Split(opened(f"{sys.argv[1]}/folder"), corpus(), "all", 0))
try:
    opened(f"{sys.argv[1]}/parquet", label_column="lable")
except UserError as error:
    found["refused"] = str(error)
print(json.dumps(found | {"seen": seen, "bad": [(b.key, b.kind, b.group) for b in bad]}))
"""


@pytest.mark.ray
def test_indexing_and_a_survey_over_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folders(tmp_path / "folder")
    for number in range(3):
        make_parquet(tmp_path / "parquet" / f"{number}.parquet")
        make_tar(tmp_path / "webdataset" / f"{number}.tar")
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths, "LATENTLM_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = json.loads(line)
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "another"))
    for name in ("parquet", "webdataset"):
        here = {str(number): label for number, label in labels(opened(tmp_path / name)).items()}
        assert found[name] == here
    assert (found["seen"], found["bad"]) == (
        12,
        [["dog/nested/deep/5.png", "decoder_crashed", "dog"]],
    )
    assert "has no column 'lable'; nearest is 'label'" in found["refused"]
    assert "Traceback" not in found["refused"]


def test_results_are_in_order_and_few_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    started, lock = [], threading.Lock()

    def work(item: int) -> int:
        with lock:
            started.append(item)
        time.sleep(0.01 if item % 3 else 0.03)
        return item * item

    results = spread(work, iter(range(100)))
    assert next(results) == 0
    time.sleep(0.2)
    assert len(started) <= 2 * THREADS + 1
    assert list(results) == [n * n for n in range(1, 100)]


def test_an_error_of_the_user_is_raised_as_it_is() -> None:
    def work(item: int) -> int:
        raise UserError(f"wrong {item}")

    with pytest.raises(UserError, match="wrong 1"):
        list(spread(work, [1]))


def test_small_files_share_a_task_and_large_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, size in enumerate([10, 10, 70, 30, 30, 30, 1, 1, 1, 1]):
        (tmp_path / f"{number}.tar").write_bytes(b"x" * size)
    monkeypatch.setattr(file_groups, "GROUP_BYTES", 64)
    monkeypatch.setattr(file_groups, "GROUP_FILES", 3)
    groups = list(file_groups.group_files(list_files(str(tmp_path)), "x", ()))
    assert ["".join(path[0] for path in group.paths) for group in groups] == [
        "01", "2", "34", "567", "89",
    ]  # fmt: skip
