"""What the end-to-end tests share: real images, a state folder, the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
extends: [{root}/experiments/quickstart.yaml]
name: small
question: Does the whole line hold together on real images?
corpus:
  source: {corpus}
  held_out_source: null
  held_out_fraction: 0.2
  chunk_records: 64
  flip: true
codec:
  latent_width: 8
  encoder: {{width: 32, depth: 1, heads: 2}}
  decoder: {{width: 32, depth: 1, heads: 2}}
  training: {{steps: 10, batch_size: 16}}
model:
  width: 32
  depth: 1
  heads: 2
  ffn_width: 64
  head: {{depth: 1, ffn_width: 64}}
train:
  steps: 40
  batch_size: 16
  precision: fp32
  zero: {{stage: 2}}
  optimizer: {{warmup_steps: 5}}
  validate_every_steps: 20
  validation_items: 32
  checkpoint: {{every_steps: 10}}
sample: {{steps: 2}}
evaluate: {{images: 20, cfg_scales: [1, 3], feature_size: 64, classifier_items: 500}}
tracking: {{system_metrics: false}}
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of these tests; a corpus fetched before is found there."""
    folder = tmp_path_factory.mktemp("home")
    fetched = Path("~/.latentlm/corpora").expanduser()
    if fetched.exists():
        (folder / "corpora").symlink_to(fetched)
    os.environ["LATENTLM_HOME"] = str(folder)
    return folder


Cli = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="session")
def cli(home: Path) -> Cli:
    """`cli("run", file, …)` → (exit code, the JSON report)."""

    def call(*arguments: str, timeout: float = 500) -> tuple[int, Any]:
        command = [sys.executable, "-m", "latentlm_platform.cli", *arguments, "--json", "-"]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )
        print(done.stderr[-4000:])
        return done.returncode, json.loads(done.stdout)

    return call


@pytest.fixture(scope="session")
def fashion_folder(cli: Cli, home: Path) -> Path:
    """600 real images of Fashion-MNIST as a folder tree, 5 % of them damaged in four ways."""
    code, _ = cli("corpora", "fetch", "fashion_mnist")
    assert code == 0
    (shard,) = sorted((home / "corpora" / "fashion_mnist" / "test").glob("*.parquet"))[:1]
    table = pq.read_table(shard).slice(0, 600).to_pylist()
    folder = home / "fashion-folder"
    for number, row in enumerate(table):
        place = folder / f"{row['label']:02d}" / f"{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(_damaged(row["image"], number))
    return folder


def _damaged(image: bytes, number: int) -> bytes:
    """Every twentieth image is spoilt: 15 truncated and 15 that are no image at all."""
    if number % 20:
        return image
    return image[: len(image) // 2] if number % 40 else b"this is no image"


@pytest.fixture(scope="session")
def experiment_file(fashion_folder: Path, home: Path) -> Path:
    """A small experiment on those images."""
    path = home / "small.yaml"
    path.write_text(
        EXPERIMENT.format(corpus=fashion_folder, root=os.path.relpath(ROOT, home)), encoding="utf-8"
    )
    return path
