"""The Ray Train loop of a model: packed rows in exact order, ZeRO, checkpoints, validation.

Global batch k is the same set of rows, with the same noise, for any number of workers: sums and
counts are reduced over ranks, never means of means. A run that restarts reads the newest intact
checkpoint and goes on from the cursors of its lanes, at ZeRO 0 with any number of workers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latentlm.catalogue import build_model
from latentlm.load import load_codec, load_weights
from latentlm.models import LossTerms, Targets, find_targets
from latentlm_platform.batches.collating import RawBatch
from latentlm_platform.batches.lane import Cursor
from latentlm_platform.batches.lanes import lanes_of
from latentlm_platform.batches.streams import PackedRows, Share, StepRows, read_ahead
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.hardware import autocast_dtype, matmul_peak_flops, pick_device
from latentlm_platform.tracking.journal import Journal
from latentlm_platform.training import checkpoints
from latentlm_platform.training.autocasting import Autocast
from latentlm_platform.training.drawing import LatentBatch, draw_batch
from latentlm_platform.training.inputs import ModelInputs
from latentlm_platform.training.learning_rate import learning_rate_at
from latentlm_platform.training.losses import StepSums
from latentlm_platform.training.showing import show_samples
from latentlm_platform.training.throughput import Throughput
from latentlm_platform.training.worker_group import note_end, stop_requested
from latentlm_platform.training.zero import ZeroEngine


@dataclass(frozen=True)
class ModelTraining:
    """Everything a worker needs: the experiment and where its inputs and outputs are."""

    key: str
    experiment: Experiment
    folder: Path
    inputs: ModelInputs

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def export(self) -> Path:
        """Where the averaged weights of the finished model are."""
        return self.folder / "weights.pt"


def train_model(job: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    ModelWorker(job["training"]).run()


class ModelWorker:
    """One rank of a model's training."""

    def __init__(self, training: ModelTraining) -> None:
        import ray.train

        context = ray.train.get_context()
        self.training, self.experiment = training, training.experiment
        self.train, self.inputs = training.experiment.train, training.inputs
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.device = pick_device()
        self.codec = load_codec(self.inputs.codec_folder).to(self.device).eval()
        self.settings = self.experiment.model_settings()
        self.law = self.inputs.loss_law()
        lanes, accumulation = self.experiment.corpus.lanes, self.train.accumulation
        self.share = Share(self.train.batch_size, lanes, self.workers, accumulation)
        self.engine = self._start_engine()
        self.journal = Journal(training.folder / "journal.jsonl")
        self.validation_loss, self.validated = math.nan, -1
        own = lanes_of(self.rank, workers=self.workers, lanes=lanes)
        self.cursors = {lane: self.inputs.start() for lane in own}
        self.step = self._restore()

    def _start_engine(self) -> ZeroEngine:
        torch.manual_seed(self.experiment.model_seed)
        model = build_model(self.settings)
        model.recompute_activations(self.train.activation_checkpointing)
        if self.experiment.model.initial_weights is not None:
            load_weights(model, Path(self.experiment.model.initial_weights))
        dtype = autocast_dtype(self.train.precision, self.device)
        peak = matmul_peak_flops(self.device, dtype or torch.float32)
        draws = self.train.timesteps_per_token
        self.throughput = Throughput(self.settings, timesteps=draws, peak_flops=peak)
        return ZeroEngine(
            Autocast(model, device=self.device, dtype=dtype).to(self.device),
            optimizer=self.train.optimizer,
            stage=self.train.zero.stage,
            micro_batch_size=self.share.micro_batch_size,
            accumulation=self.train.accumulation,
            ema_decay=self.train.ema_decay,
        )

    def _restore(self) -> int:
        """Steps already done, from the newest intact checkpoint."""
        found, faults = checkpoints.newest_intact(self.training.checkpoints)
        if self.rank == 0:
            for fault in faults:
                print(f"checkpoint passed over: {fault}")
            self.journal.truncate_after(found.step if found else 0)
        if found is None:
            return 0
        self._refuse_strangers(found)
        self.engine.restore(found.folder)
        self.cursors = checkpoints.read_cursors(found, self.cursors)
        return found.step

    def _refuse_strangers(self, found: checkpoints.Checkpoint) -> None:
        if found.facts["key"] != self.training.key:
            raise UserError(
                f"{found.folder} belongs to experiment {found.facts['key']}, not to"
                f" {self.training.key}; remove it or run its own experiment",
                exit_code=1,
            )
        if self.train.zero.stage and found.facts["workers"] != self.workers:
            raise UserError(
                f"{found.folder} was written by {found.facts['workers']} workers at ZeRO stage"
                f" {self.train.zero.stage}, where other numbers cannot go on from it: set"
                f" train.workers={found.facts['workers']}, or begin anew with --new",
                exit_code=1,
            )

    def run(self) -> None:
        """Train to the last step or to a requested stop; the first rank notes which it was."""
        how = "finished"
        self.throughput.start()  # a step's time includes its wait for data
        for rows in self._steps():
            stop = self._train_step(rows)
            due = self.step % self.train.checkpoint.every_steps == 0
            if self.step % self.train.validate_every_steps == 0 or self.step == self.train.steps:
                self._validate()
            if due or stop or self.step == self.train.steps:
                self._save()
            if stop and self.step < self.train.steps:
                how = "stopped"
                break
        if how == "finished":
            self._export()
        self.journal.close()
        if self.rank == 0:
            note_end(self.training.folder, how)

    def _steps(self) -> Iterator[StepRows]:
        steps = self.train.steps - self.step
        sources = self.inputs.sources(self.cursors, rows=steps * self.share.rows_a_lane)
        width = self.codec.latent_width
        composer = self.inputs.composer()
        rows = PackedRows(sources, composer, self.share, width, self.cursors)
        return read_ahead(rows, steps=steps)

    def _train_step(self, rows: StepRows) -> bool:
        """One optimizer step; whether a stop was asked for."""
        learning_rate = learning_rate_at(self.step, self.train.steps, self.train.optimizer)
        seed = self.experiment.model_seed
        batches = [self._drawn(raw, seed=seed) for raw in rows.micro_batches]
        targets = [self._targets(batch, self.train.label_dropout) for batch in batches]
        draws = self.train.timesteps_per_token
        wishes = torch.stack([t.counts_K(draws) for t in targets]).sum(0)
        stop = wishes.new_tensor([self.rank == 0 and stop_requested(self.training.folder)])
        *counts, stops = self._summed(torch.cat((wishes, stop))).tolist()
        # times the number of ranks, over which ZeRO averages gradients
        weights_K = self.workers * self.law.shares(counts).to(self.device)
        sums = StepSums(len(self.law.sources))
        for batch, target in zip(batches, targets, strict=True):
            loss = self._loss(batch, target)
            sums.add(loss)
            self.engine.backward(loss.sums_K @ weights_K)
            self.engine.micro_step(learning_rate=learning_rate)
        self.throughput.count(rows.micro_batches, targets)
        reduced = self._summed(torch.cat([sums.vector(), self.throughput.vector()]))
        held = len(reduced) - self.throughput.size
        means = self.law.means(reduced[:held])
        self.step += 1
        self.cursors = {lane: Cursor.of(state) for lane, state in rows.cursors.items()}
        self._check_finite(means["loss"], self.engine.gradient_norm())
        rates = self.throughput.rates(reduced[held:], workers=self.workers)
        if self.rank == 0:
            rates |= {"learning_rate": learning_rate, "gradient_norm": self.engine.gradient_norm()}
            self.journal.write(step=self.step, metrics=means | rates)
        return stops > 0

    def _drawn(self, raw: RawBatch, *, seed: int) -> LatentBatch:
        codes = self.experiment.model.kind == "code_lm"
        return draw_batch(raw, self.codec, seed=seed, device=self.device, as_words=codes)

    def _targets(self, batch: LatentBatch, dropout: float) -> Targets:
        return find_targets(
            batch.packed,
            self.settings,
            noise=batch.noise,
            condition_dropout=dropout,
            sources=len(self.law.sources),
        )

    def _loss(self, batch: LatentBatch, targets: Targets) -> LossTerms:
        terms: LossTerms = self.engine(
            batch.packed,
            targets,
            noise=batch.noise,
            timesteps_per_token=self.train.timesteps_per_token,
        )
        return terms

    def _check_finite(self, loss: float, gradient_norm: float) -> None:
        # the reduced loss is the same number on all ranks, so all of them end here together
        if not math.isfinite(loss) or not math.isfinite(gradient_norm):
            raise UserError(
                f"the loss is {loss} (gradient norm {gradient_norm}) at step {self.step};"
                " the last checkpoint is intact: lower train.optimizer.learning_rate",
                exit_code=1,
            )

    @torch.no_grad()
    def _validate(self) -> None:
        """The loss of the averaged weights on held-out items, the same draws every time."""
        sums = StepSums(len(self.law.sources))
        with self.engine.averaged_weights():
            for raw in self.inputs.held_out(self.rank, workers=self.workers, share=self.share):
                batch = self._drawn(raw, seed=self.experiment.seed)
                sums.add(self._loss(batch, self._targets(batch, 0.0)))
            self._show()
        self.validation_loss = self.law.means(self._summed(sums.vector()))["loss"]
        self.validated = self.step
        if self.rank == 0:
            self.journal.write(step=self.step, metrics={"validation_loss": self.validation_loss})

    def _show(self) -> None:
        path = self.training.folder / "pictures" / f"step-{self.step:08d}.png"
        model = self.engine.engine.module.model
        show_samples(model, self.codec, self.experiment, path=None if self.rank else path)

    def _save(self) -> None:
        partial = checkpoints.partial_folder(self.training.checkpoints, self.step)
        partial.mkdir(parents=True, exist_ok=True)
        self.engine.save(partial)
        states = checkpoints.gather_cursors(self.cursors)
        if self.rank == 0:
            checkpoints.write_cursors(partial, states)
            facts = {
                "key": self.training.key,
                "step": self.step,
                "workers": self.workers,
                "zero_stage": self.train.zero.stage,
                "validation_loss": self.validation_loss if self.validated == self.step else None,
            }
            checkpoints.commit(partial, facts)
            kept = self.train.checkpoint
            checkpoints.retain(self.training.checkpoints, latest=kept.latest, best=kept.best)
        dist.barrier()

    def _export(self) -> None:
        with self.engine.averaged_weights():
            weights = self.engine.whole_weights()
        if self.rank == 0:
            whole = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
            partial = self.training.export.with_suffix(".partial")
            torch.save(whole, partial)
            partial.rename(self.training.export)

    def _summed(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()
