"""The Ray Train loop of a model: micro-batches in exact order, ZeRO, checkpoints, validation.

Global batch k is the same set of samples, with the same noise, for any number of workers: sums and
counts are reduced over ranks, never means of means. A run that restarts reads the newest intact
checkpoint and goes on at the sample after the last one it consumed.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentlm.catalogue import build_model
from latentlm.codec.contract import LatentPosterior
from latentlm.generate import sample_latents
from latentlm.load import load_codec, load_weights
from latentlm.media import encode_png, tile_images
from latentlm.models import LossTerms, Targets, find_targets, flops_per_item
from latentlm.randomness import RowNoise
from latentlm.sequence import PackedBatch, class_conditional, class_conditional_codes
from latentlm.signals import signal_to_pixels
from latentlm_platform.batches.ordering import SampleOrder, Share
from latentlm_platform.batches.stream import StreamSettings, stream_cached, stream_encoded
from latentlm_platform.corpora.splits import Splits
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Experiment, Optimizer
from latentlm_platform.hardware import autocast_dtype, matmul_peak_flops, pick_device
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.wire_rows import Arrays
from latentlm_platform.tracking.journal import Journal
from latentlm_platform.training import checkpoints
from latentlm_platform.training.losses import StepSums, loss_means, shares
from latentlm_platform.training.worker_group import note_end, stop_requested
from latentlm_platform.training.zero import ZeroEngine

VALIDATION_EPOCH = 2**31  # keys the noise of validation apart from every training epoch's
SHOWN_CLASSES, SHOWN_ROWS = 10, 2


@dataclass(frozen=True)
class ModelTraining:
    """Everything a worker needs: the experiment and where its inputs and outputs are."""

    key: str
    experiment: Experiment
    folder: Path
    codec_folder: Path
    cache: LatentCache
    splits: Splits
    cached_sizes: dict[str, tuple[int, ...]]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def export(self) -> Path:
        """Where the averaged weights of the finished model are."""
        return self.folder / "weights.pt"

    def order(self) -> SampleOrder:
        """The training order over what this mode reads: cached rows, or records of the corpus."""
        streamed = self.experiment.latents.mode == "streamed"
        sizes = self.splits.train.chunk_sizes if streamed else self.cached_sizes["train"]
        window = self.experiment.corpus.shuffle_window_chunks
        return SampleOrder(sizes, seed=self.experiment.model_seed, window_chunks=window)


@dataclass(frozen=True)
class LatentBatch:
    """Documents ready for the model (normalised, noise drawn), and the noise of each."""

    packed: PackedBatch
    noise: RowNoise


def train_model(job: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    ModelWorker(job["training"]).run()


class ModelWorker:
    """One rank of a model's training."""

    def __init__(self, training: ModelTraining) -> None:
        import ray.train

        context = ray.train.get_context()
        self.training, self.experiment = training, training.experiment
        self.train = training.experiment.train
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.device = pick_device()
        self.codec = load_codec(training.codec_folder).to(self.device).eval()
        self.share = Share(self.train.batch_size, self.rank, self.workers, self.train.accumulation)
        settings = self.experiment.model_settings()
        self.latent_count = settings.latent_count or 0
        self.loss_weights = (self.train.alpha, 1.0, self.train.stop_weight)
        self.flops_per_item = flops_per_item(settings, self.train.timesteps_per_token)
        self.engine = self._start_engine()
        self.journal = Journal(training.folder / "journal.jsonl")
        self.validation_loss, self.validated = math.nan, -1
        self.step = self._restore()

    def _start_engine(self) -> ZeroEngine:
        torch.manual_seed(self.experiment.model_seed)
        model = build_model(self.experiment.model_settings())
        model.recompute_activations(self.train.activation_checkpointing)
        if self.experiment.model.initial_weights is not None:
            load_weights(model, Path(self.experiment.model.initial_weights))
        dtype = autocast_dtype(self.train.precision, self.device)
        self.peak_flops = matmul_peak_flops(self.device, dtype or torch.float32)
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
        if found is None:
            if self.rank == 0:
                self.journal.truncate_after(0)
            return 0
        if found.facts["key"] != self.training.key:
            raise UserError(
                f"{found.folder} belongs to experiment {found.facts['key']}, not to"
                f" {self.training.key}; remove it or run its own experiment",
                exit_code=1,
            )
        self.engine.restore(found.folder)
        if self.rank == 0:
            self.journal.truncate_after(found.step)
        return found.step

    def run(self) -> None:
        """Train to the last step or to a requested stop; the first rank notes which it was."""
        how = "finished"
        batches = self._micro_batches()
        self.clock = time.perf_counter()  # a step's time includes its wait for data
        while self.step < self.train.steps:
            micro = [next(batches) for _ in range(self.train.accumulation)]
            stop = self._train_step(micro)
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

    def _micro_batches(self) -> Iterator[LatentBatch]:
        settings = StreamSettings(
            order=self.training.order(),
            share=self.share,
            first_step=self.step,
            stop_step=self.train.steps,
            seed=self.experiment.model_seed,
            flip=self.experiment.corpus.flip,
            readers=self.experiment.corpus.readers,
        )
        if self.experiment.latents.mode == "cached":
            stream = stream_cached(settings, self.training.cache, "train")
        else:
            stream = stream_encoded(
                settings,
                self.training.splits.train,
                codec_folder=self.training.codec_folder,
                latents=self.experiment.latents,
            )
        return map(self._collate, stream)

    def _collate(self, arrays: Arrays) -> LatentBatch:
        tensors = {
            name: torch.from_numpy(np.array(arrays[name])).to(self.device)
            for name in ("mean", "std", "labels", "ids", "epochs")
            if name in arrays
        }
        noise = RowNoise(
            seed=self.experiment.model_seed, ids_B=tensors["ids"], epochs_B=tensors["epochs"]
        )
        posterior = LatentPosterior(tensors["mean"], tensors.get("std"))
        latents_BNZ = self.codec.normalise(self.codec.draw(posterior, noise=noise))
        if self.experiment.model.kind == "code_lm":
            codes_BN = latents_BNZ.squeeze(-1).long()
            return LatentBatch(class_conditional_codes(codes_BN, tensors["labels"]), noise)
        return LatentBatch(class_conditional(latents_BNZ, tensors["labels"]), noise)

    def _train_step(self, micro_batches: list[LatentBatch]) -> bool:
        """One optimizer step; whether a stop was asked for."""
        learning_rate = learning_rate_at(self.step, self.train.steps, self.train.optimizer)
        targets = [self._targets(batch, self.train.label_dropout) for batch in micro_batches]
        wishes = torch.stack([t.counts_3(self.train.timesteps_per_token) for t in targets]).sum(0)
        stop = wishes.new_tensor([self.rank == 0 and stop_requested(self.training.folder)])
        *counts, stops = self._summed(torch.cat((wishes, stop))).tolist()
        # times the number of ranks, over which ZeRO averages gradients
        weights = self.workers * shares(counts, self.loss_weights).to(self.device)
        sums = StepSums()
        for batch, target in zip(micro_batches, targets, strict=True):
            loss = self._loss(batch, target)
            sums.add(loss)
            self.engine.backward(loss.sums_3 @ weights)
            self.engine.micro_step(learning_rate=learning_rate)
        means = self._means(sums)
        self.step += 1
        self._check_finite(means["loss"], self.engine.gradient_norm())
        if self.rank == 0:
            now = time.perf_counter()
            self._journal_step(means, learning_rate, elapsed=now - self.clock)
            self.clock = now
        return stops > 0

    def _targets(self, batch: LatentBatch, dropout: float) -> Targets:
        settings = self.experiment.model_settings()
        return find_targets(batch.packed, settings, noise=batch.noise, condition_dropout=dropout)

    def _means(self, sums: StepSums) -> dict[str, float]:
        """The losses over all ranks."""
        return loss_means(self._summed(sums.vector()), self.loss_weights)

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

    def _journal_step(
        self, means: dict[str, float], learning_rate: float, *, elapsed: float
    ) -> None:
        rate = self.train.batch_size / elapsed
        metrics = means | {
            "learning_rate": learning_rate,
            "gradient_norm": self.engine.gradient_norm(),
            "images_per_s": rate,
            "tokens_per_s": rate * self.latent_count,
            "mfu": rate * self.flops_per_item / (self.peak_flops * self.workers),
        }
        self.journal.write(step=self.step, metrics=metrics)

    @torch.no_grad()
    def _validate(self) -> None:
        """The loss of the averaged weights on held-out items, the same draws every time."""
        sums = StepSums()
        with self.engine.averaged_weights():
            for batch in self._held_out():
                sums.add(self._loss(batch, self._targets(batch, 0.0)))
            self._show_samples()
        self.validation_loss, self.validated = self._means(sums)["loss"], self.step
        if self.rank == 0:
            self.journal.write(step=self.step, metrics={"validation_loss": self.validation_loss})

    def _show_samples(self) -> None:
        """A picture of what the averaged weights generate, the same noise every time.

        Every rank computes it: under ZeRO-3 a forward pass needs them all.
        """
        classes = min(SHOWN_CLASSES, self.experiment.corpus.classes)
        labels_B = torch.arange(classes, device=self.device).repeat(SHOWN_ROWS)
        ids_B = torch.arange(len(labels_B), device=self.device)
        noise = RowNoise(seed=self.experiment.model_seed, ids_B=ids_B, epochs_B=VALIDATION_EPOCH)
        sampler = self.experiment.sample
        latents_BNZ = sample_latents(
            self.engine.engine.module.model,
            labels_B,
            cfg_scales_B=torch.full(labels_B.shape, float(sampler.cfg_scale), device=self.device),
            sampler=sampler,
            noise=noise,
            text=sampler.text,
        )
        if self.rank == 0:
            signal_BCYX = self.codec.decode(self.codec.denormalise(latents_BNZ))
            picture = tile_images(signal_to_pixels(signal_BCYX).cpu().numpy(), columns=classes)
            folder = self.training.folder / "pictures"
            folder.mkdir(exist_ok=True)
            partial = folder / f"step-{self.step:08d}.partial"
            partial.write_bytes(encode_png(picture))
            partial.rename(partial.with_suffix(".png"))

    def _held_out(self) -> Iterator[LatentBatch]:
        sizes = self.training.cached_sizes["held_out"]
        order = SampleOrder(sizes, seed=self.experiment.model_seed, window_chunks=len(sizes))
        usable = min(self.train.validation_items, order.epoch_length)
        share = usable // self.workers
        start, size = self.rank * share, self.share.micro_batch_size
        for first in range(start, start + share, size):
            rows = order.rows(first, min(first + size, start + share))
            mirrored = np.zeros(len(rows.ids), np.bool_)
            found = self.training.cache.read_rows("held_out", rows, mirrored_B=mirrored)
            arrays: Arrays = {
                "mean": found.mean_BNZ,
                "labels": found.labels_B,
                "ids": rows.ids,
                "epochs": np.full_like(rows.ids, VALIDATION_EPOCH),
            }
            yield self._collate(arrays | ({} if found.std_BNZ is None else {"std": found.std_BNZ}))

    def _save(self) -> None:
        partial = checkpoints.partial_folder(self.training.checkpoints, self.step)
        partial.mkdir(parents=True, exist_ok=True)
        self.engine.save(partial)
        dist.barrier()
        if self.rank == 0:
            facts = {
                "key": self.training.key,
                "step": self.step,
                "samples_consumed": self.step * self.train.batch_size,
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


class Autocast(nn.Module):
    """A model computing in `dtype` where autocast allows it; `None` leaves it in fp32."""

    def __init__(
        self, model: nn.Module, *, device: torch.device, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.model, self.device_type, self.dtype = model, device.type, dtype

    def forward(self, *inputs: Any, **named: Any) -> Any:
        on = self.dtype is not None
        with torch.autocast(self.device_type, self.dtype) if on else contextlib.nullcontext():
            return self.model(*inputs, **named)


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
