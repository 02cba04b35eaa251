"""Sweeps and runs in a real MLflow store, of the shape that the platform writes, in seconds.

Values are laws, not measurements: the Fréchet distance is FLOOR + (σ - BEST_SIGMA)² · 100 +
(CFG - BEST_CFG)² · 10, and a tile's grey is `tile_grey(σ, CFG, tile)`. Pictures and tables are
written where MLflow's own client would put them.
"""

import atexit
import functools
import io
import json
import math
import random
import shutil
import struct
import tempfile
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from latentlm_dashboards.runs import connect

FLOOR, BEST_SIGMA, BEST_CFG = 50.0, 0.5, 2.0
METRIC = "frechet_efficientnet_lite0"
TILE, GAP = 32, 2


@dataclass
class TrackedStore:
    """An SQLite store and one experiment of it, artifacts in a folder beside it.

    `served`: to read them takes MLflow's server, as `latentlm ui` starts it for this folder.
    """

    folder: Path
    experiment: str = "latentlm"
    served: bool = False
    client: Any = field(init=False)
    experiment_id: str = field(init=False)
    clock_ms: int = 1_790_000_000_000

    def __post_init__(self) -> None:
        self.client = connect(self.uri)
        place = "mlflow-artifacts:/" if self.served else (self.folder / "mlartifacts").as_uri()
        self.experiment_id = self.client.create_experiment(self.experiment, artifact_location=place)

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def start(
        self, name: str, *, parent: str | None = None, tags: dict[str, Any] | None = None
    ) -> str:
        """A new run; every run starts a second after the one before."""
        self.clock_ms += 1000
        family = {"mlflow.parentRunId": parent} if parent else {}
        texts = {key: str(value) for key, value in (tags or {}).items()}
        made: str = self.client.create_run(
            self.experiment_id, start_time=self.clock_ms, run_name=name, tags=family | texts
        ).info.run_id
        return made

    def log(
        self,
        run: str,
        *,
        parameters: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
        curves: dict[str, Sequence[float]] | None = None,
    ) -> None:
        """Parameters as the platform flattens them, final metrics, values by step from 1."""
        from mlflow.entities import Metric, Param

        texts = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in (parameters or {}).items()
        }
        rows = [Metric(name, value, self.clock_ms, 0) for name, value in (metrics or {}).items()]
        for name, values in (curves or {}).items():
            rows += [Metric(name, v, self.clock_ms, step) for step, v in enumerate(values, 1)]
        params = [Param(name, value) for name, value in texts.items()]
        self.client.log_batch(run, params=params, metrics=rows)

    def finish(self, run: str, status: str = "FINISHED", seconds: float = 60.0) -> None:
        """The run ended so, so long after it began."""
        started = self.client.get_run(run).info.start_time
        self.client.set_terminated(run, status, end_time=started + round(1000 * seconds))

    def write(self, run: str, path: str, content: bytes | str) -> None:
        """An artifact of the run."""
        place = self.folder / "mlartifacts" / run / "artifacts" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)

    def picture(self, run: str, key: str, step: int, raw: bytes) -> None:
        """A picture under MLflow's own name for a key and step."""
        name = f"{key}+step+{step}+timestamp+{self.clock_ms}+0f0f0f0f-0000-4000-8000-000000000000"
        self.write(run, f"images/{name}.png", raw)

    def table(self, run: str, path: str, rows: Sequence[dict[str, Any]]) -> None:
        """A table as `TrackedRun.log_table` writes it."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        data = [[row.get(name) for name in columns] for row in rows]
        self.write(run, path, json.dumps({"columns": columns, "data": data}))


def law(sigma: float, cfg: float) -> float:
    """The Fréchet distance that a point has, seeds apart."""
    return FLOOR + (sigma - BEST_SIGMA) ** 2 * 100 + (cfg - BEST_CFG) ** 2 * 10


def tile_grey(sigma: float, cfg: float, tile: int) -> int:
    """The grey of every pixel of a tile."""
    return round(20 + 60 * sigma + 20 * cfg + 4 * tile) % 250


def tiles_png(grey: Callable[[int], int], *, columns: int = 10, rows: int = 8) -> bytes:
    """Tiles of one grey each, row by row on white, as the platform tiles images."""
    step = TILE + GAP
    sheet = Image.new("L", (columns * step + GAP, rows * step + GAP), 255)
    for index in range(columns * rows):
        at = GAP + index % columns * step, GAP + index // columns * step
        sheet.paste(grey(index), (*at, at[0] + TILE, at[1] + TILE))
    packed = io.BytesIO()
    sheet.save(packed, "PNG")
    return packed.getvalue()


def noise_png(*, seed: int, columns: int = 10, rows: int = 1) -> bytes:
    """Tiles of coarse noise, which packs as badly as pictures do."""
    step = TILE + GAP
    size = columns * step + GAP, rows * step + GAP
    draw = random.Random(seed)
    coarse = bytes(draw.randrange(256) for _ in range((size[0] // 4) * (size[1] // 4)))
    sheet = Image.frombytes("L", (size[0] // 4, size[1] // 4), coarse)
    packed = io.BytesIO()
    sheet.resize(size, Image.Resampling.BICUBIC).save(packed, "PNG")
    return packed.getvalue()


def sine_wav(hertz: float, *, seconds: float = 0.5, rate: int = 24_000) -> bytes:
    """A tone of half amplitude, 16-bit PCM."""
    count = round(seconds * rate)
    values = (round(16_000 * math.sin(2 * math.pi * hertz * n / rate)) for n in range(count))
    packed = io.BytesIO()
    with wave.open(packed, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{count}h", *values))
    return packed.getvalue()


COMMON = {
    "corpus.source": "fashion_mnist/test",
    "corpus.image_size": 32,
    "codec.kind": "image_vit",
    "codec.training.steps": 100,
    "model.kind": "latent_lm",
    "model.width": 64,
    "model.depth": 3,
    "train.steps": 100,
    "train.batch_size": 64,
    "sample.solver": "dpm_solver_pp_2m",
    "sample.steps": 20,
    "sample.cfg_scale": 1.0,
    "evaluate.images": 500,
    "evaluate.cfg_scales": [],
}
PROVENANCE = {
    "latentlm.git_commit": "9c3f5bde29cd2dfb8b2044b1e760029e13dac136",
    "latentlm.git_dirty": "false",
    "latentlm.hardware": "2 × AMD EPYC",
}


@dataclass(frozen=True)
class SweepShape:
    """What a written sweep varies and how it ended."""

    name: str = "sigma_cfg"
    question: str = "Which σ and which CFG scale are best?"
    reproduces: str = "Figure 6"
    sigmas: tuple[float, ...] = (0.1, 0.5, 1.0)
    cfgs: tuple[float, ...] = (1.0, 2.0, 3.0)
    seeds: tuple[int, ...] = (0, 1)
    status: str = "FINISHED"
    finished: int | None = None  # evaluations; None for all
    training_pictures: int = 2  # of each model
    nan_at: tuple[float, float] | None = None  # σ and CFG of a point that diverged
    sound: bool = False


def write_sweep(
    store: TrackedStore, shape: SweepShape | None = None, *, key: str = "ab12cd34"
) -> str:
    """A sweep over σ, CFG and seeds: codecs, models, evaluations, pictures and tables; its id."""
    shape = shape or SweepShape()
    tags = {
        "latentlm.kind": "sweep",
        "latentlm.key": key,
        "latentlm.question": shape.question,
        "latentlm.reproduces": shape.reproduces,
    }
    parent = store.start(shape.name, tags=tags | PROVENANCE)
    grid = {
        "sweep.grid.codec.variance.sigma": list(shape.sigmas),
        "sweep.grid.train.seed": list(shape.seeds),
        "sweep.grid.sample.cfg_scale": list(shape.cfgs),
        "sweep.metric": METRIC,
        "sweep.mode": "null",
        "sweep.cost": "sampling_cpu_seconds_per_image",
    }
    store.log(parent, parameters=COMMON | grid)
    rows: list[dict[str, Any]] = []
    for sigma in shape.sigmas:
        codec = _write_codec(store, parent, sigma)
        for seed in shape.seeds:
            model = _write_model(store, parent, sigma, seed, codec, shape)
            for cfg in shape.cfgs:
                if shape.finished is None or len(rows) < shape.finished:
                    chosen = {
                        "codec.variance.sigma": sigma,
                        "train.seed": seed,
                        "sample.cfg_scale": cfg,
                    }
                    rows.append(_write_evaluation(store, parent, chosen, (codec, model), shape))
    store.write(parent, "experiment/resolved.yaml", f"name: {json.dumps(shape.name)}\n")
    store.table(parent, "bad_records.json", BAD_RECORDS)
    if shape.status == "FINISHED":
        store.table(parent, "points.json", rows)
        store.write(parent, "findings.json", json.dumps(_findings(shape)))
        store.write(parent, "findings.txt", "best: as the law says\n")
        store.log(parent, metrics={"points_finished": len(rows), "run_seconds": 900.0})
    if shape.status != "RUNNING":
        store.finish(parent, shape.status)
    return parent


BAD_RECORDS = [
    {"key": "train/0007", "kind": "undecodable", "reason": "truncated <PNG> & more"},
    {"key": "train/0011", "kind": "label_out_of_range", "reason": "class 12 is not in 0 … 9"},
]


def _findings(shape: SweepShape) -> dict[str, Any]:
    best = min(((s, c) for s in shape.sigmas for c in shape.cfgs), key=lambda one: law(*one))
    return {
        "metric": METRIC,
        "mode": "min",
        "best": {"values": {"codec.variance.sigma": best[0], "sample.cfg_scale": best[1]}},
        "importances": [{"path": "codec.variance.sigma", "share": 0.7}],
        "claims": [{"says": "it falls with σ", "held": "no", "sentence": "1 of 2 steps fall"}],
        "notes": [],
    }


def _write_codec(store: TrackedStore, parent: str, sigma: float) -> str:
    key = f"codec-{sigma:g}"
    chosen = {"codec.variance.sigma": sigma}
    tags = {"latentlm.kind": "codec", "latentlm.key": key, "latentlm.chosen": json.dumps(chosen)}
    run = store.start(f"codec {sigma:g}", parent=parent, tags=tags)
    store.log(run, metrics={"reconstruction_psnr": 20.0 - sigma}, curves={"loss": [1.0, 0.5]})
    channels = [{"channel": c, "mu_std": sigma * (1 + c / 10)} for c in range(4)]
    store.table(run, "variance.json", channels)
    store.picture(run, "reconstructions", 100, tiles_png(lambda i: 10 * i, rows=2))
    store.finish(run)
    return key


def _write_model(
    store: TrackedStore, parent: str, sigma: float, seed: int, codec: str, shape: SweepShape
) -> str:
    key = f"model-{sigma:g}-{seed}"
    tags = {
        "latentlm.kind": "model",
        "latentlm.key": key,
        "latentlm.chosen": json.dumps({"codec.variance.sigma": sigma, "train.seed": seed}),
        "latentlm.lineage.codec": codec,
    }
    run = store.start(f"model {sigma:g} {seed}", parent=parent, tags=tags)
    losses = [1 / step + sigma / 10 for step in range(1, 41)]
    store.log(run, curves={"loss": losses, "validation_loss": losses[9::10]})
    for number in range(shape.training_pictures):
        store.picture(run, "samples", 50 * (number + 1), noise_png(seed=number))
    store.finish(run, seconds=240.0)
    return key


def _write_evaluation(
    store: TrackedStore,
    parent: str,
    chosen: dict[str, Any],
    lineage: tuple[str, str],
    shape: SweepShape,
) -> dict[str, Any]:
    """One point; its row of points.json."""
    sigma, seed, cfg = (
        chosen[path] for path in ("codec.variance.sigma", "train.seed", "sample.cfg_scale")
    )
    tags = {
        "latentlm.kind": "evaluation",
        "latentlm.key": f"point-{sigma:g}-{seed}-{cfg:g}",
        "latentlm.chosen": json.dumps(chosen),
        "latentlm.trial": f"trial-{sigma:g}-{seed}",
        "latentlm.lineage.codec": lineage[0],
        "latentlm.lineage.model": lineage[1],
        "latentlm.lineage.latents": f"latents-{sigma:g}",
        "latentlm.lineage.corpus": "c0ffee",
    }
    run = store.start(f"cfg {cfg:g} sigma {sigma:g} seed {seed}", parent=parent, tags=tags)
    value = law(sigma, cfg) + (2 * seed - 1) * 0.5
    if shape.nan_at == (sigma, cfg):
        value = math.nan
    metrics = {
        METRIC: value,
        f"{METRIC}_low": value - 2,
        f"{METRIC}_high": value + 2,
        "generated_accuracy": 0.9 - (cfg - BEST_CFG) ** 2 / 50,
        "sampling_cpu_seconds_per_image": 0.004 + 0.002 * (cfg > 1),
    }
    parameters = {"cfg_scale": cfg, "solver": "dpm_solver_pp_2m", "solver_steps": 20, "images": 500}
    store.log(run, parameters=parameters, metrics=metrics)
    store.picture(run, "samples", 0, tiles_png(lambda i: tile_grey(sigma, cfg, i)))
    if seed == 0:
        store.picture(run, "trajectory", 0, tiles_png(lambda i: 25 * (i % 8), columns=8, rows=4))
        bias = [{"position": n, "exposure_bias": n * sigma / 100} for n in range(16)]
        store.table(run, "exposure_bias.json", bias)
    lines = [f"{i},{seed},{i % 10},{cfg},dpm_solver_pp_2m,20,{i % 10}" for i in range(20)]
    header = "id,seed,class,cfg_scale,solver,solver_steps,predicted_class"
    store.write(run, "samples.csv", "\n".join([header, *lines]))
    if shape.sound:
        store.write(run, "audio/one.wav", sine_wav(500 * cfg))
        store.write(run, "audio/texts.json", json.dumps({"one": "a short sentence"}))
    store.finish(run, seconds=1.0)
    seconds = {"codec_seconds": 60.0, "latents_seconds": 10.0, "model_seconds": 240.0}
    kept = {name: v for name, v in metrics.items() if math.isfinite(v)}
    return chosen | kept | seconds | {"evaluation_seconds": 30.0}


def write_quickstart(
    store: TrackedStore, *, key: str = "3f9a1111", name: str = "quickstart"
) -> str:
    """A run of four CFG scales, as `make quickstart` leaves it: CFG 3 is best by accuracy."""
    tags = {
        "latentlm.kind": "run",
        "latentlm.key": key,
        "latentlm.question": "Which CFG scale is best?",
        "latentlm.reproduces": "Figure 10a, on images",
    }
    parent = store.start(name, tags=tags | PROVENANCE)
    store.log(parent, parameters=COMMON | {"evaluate.cfg_scales": [1, 1.5, 2, 3]})
    for cfg, accuracy in ((1.0, 0.70), (1.5, 0.80), (2.0, 0.86), (3.0, 0.95)):
        own = {"latentlm.kind": "evaluation", "latentlm.key": "e1", "latentlm.chosen": "{}"}
        run = store.start(f"{name} cfg {cfg:g}", parent=parent, tags=own)
        metrics = {
            "generated_accuracy": accuracy,
            "generated_accuracy_low": accuracy - 0.02,
            "generated_accuracy_high": accuracy + 0.02,
            METRIC: law(0.5, cfg),
        }
        store.log(run, parameters={"cfg_scale": cfg}, metrics=metrics)
        greys = [tile_grey(0.5, cfg, i) for i in range(80)]
        store.picture(run, "samples", 0, tiles_png(greys.__getitem__))
        store.finish(run, seconds=1.0)
    store.finish(parent)
    return parent


HOSTILE = 'it\'s "quoted" <script>alert(1)</script> ‰ 名'


@functools.cache
def tracked_examples() -> TrackedStore:
    """One store a process, for tests that only read: a new one takes seconds to create.

    ab12cd34 sigma_cfg (a point diverged, with sound), 3f9a1111 quickstart, beef0001 a running sweep
    of a hostile name, dead0001 a run killed at once, e0e0e0e0 a run that finished with nothing.
    """
    folder = tempfile.mkdtemp(prefix="latentlm-sweeps-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store = TrackedStore(Path(folder))
    write_sweep(store, SweepShape(nan_at=(1.0, 3.0), sound=True))
    write_quickstart(store)
    running = SweepShape(HOSTILE, f"Is {HOSTILE} better?", status="RUNNING", finished=5)
    write_sweep(store, running, key="beef0001")
    for key, name, status in (("dead0001", "killed", "KILLED"), ("e0e0e0e0", "empty", "FINISHED")):
        tags = {"latentlm.kind": "run", "latentlm.key": key, "latentlm.error": "interrupted"}
        store.finish(store.start(name, tags=tags), status)
    return store


LARGE_KEY = "1a29e000"


@functools.cache
def tracked_large() -> TrackedStore:
    """The same store with a sweep of a hundred evaluations and a thousand pictures in it."""
    store = tracked_examples()
    write_large(store)
    return store


def write_large(store: TrackedStore) -> None:
    """A sweep of a hundred evaluations and a thousand pictures."""
    shape = SweepShape(
        name="large",
        sigmas=tuple(i / 10 for i in range(1, 11)),
        cfgs=tuple(1 + i / 4 for i in range(10)),
        seeds=(0,),
        training_pictures=90,
    )
    write_sweep(store, shape, key=LARGE_KEY)
