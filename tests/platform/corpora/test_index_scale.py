"""Ten million records in twenty thousand chunks: a process opens them at once and stays small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from making_large_index import CHUNK_RECORDS, CHUNKS, CLASSES, FRACTION, write_large_index

OPEN_SECONDS, GROWTH_BYTES = 2.0, 200 * 2**20
SCRIPT = f"""
import json, sys, time
from pathlib import Path
import psutil
from latentlm_platform.corpora.corpus_index import CorpusIndex
from latentlm_platform.corpora.chunk_index import load_index, read_entries
from latentlm_platform.corpora.records import PartSource
from latentlm_platform.corpora.splits import Split
from latentlm_platform.experiment.sections import Corpus

folder = Path(sys.argv[1])
corpus = Corpus(source="x", classes={CLASSES}, image_size=8, held_out_fraction={FRACTION})
before, started = psutil.Process().memory_info().rss, time.monotonic()
stored = load_index(folder)
naming = stored.naming
index = CorpusIndex("x", "parquet", "d", folder, stored.records, *naming, parts=())
train, held_out = (Split(index, corpus, part, 0) for part in ("train", "held_out"))
chunk = {CHUNKS} - 7
found = dict(
    chunks=len(train.chunk_sizes),
    train=int(train.chunk_sizes.sum()),
    held_out=int(held_out.chunk_sizes.sum()),
    rows=len(train.rows_of(chunk)),
    last_id=int(train.ids_of(chunk)[-1]),
    entry=read_entries(folder, chunk)[0].ranges,
)
seconds = time.monotonic() - started
growth = psutil.Process().memory_info().rss - before
print(json.dumps(found | dict(seconds=seconds, growth=growth)))
"""


def test_ten_million_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "index"
    assert write_large_index(folder).records == CHUNKS * CHUNK_RECORDS == 10_000_000
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["chunks"], found["held_out"], found["train"]) == (CHUNKS, 10_000, 9_990_000)
    assert found["rows"] in range(CHUNK_RECORDS - 5, CHUNK_RECORDS + 1)
    assert found["last_id"] // CHUNK_RECORDS == CHUNKS - 7
    assert found["entry"] == [(CHUNKS - 7) % 100 * CHUNK_RECORDS, CHUNK_RECORDS]
    assert found["seconds"] < OPEN_SECONDS, found
    assert found["growth"] < GROWTH_BYTES, found
    print({name: found[name] for name in ("seconds", "growth")})
