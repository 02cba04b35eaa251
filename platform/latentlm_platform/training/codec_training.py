"""The Ray Train loop of a codec: generator, and critic where the objective has one.

Same order, same noise and same checkpoints as the model's loop; data-parallel over the workers.
The codec itself has no latent statistics yet: the encoding pass adds them.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentlm.catalogue import build_codec
from latentlm.codec.critics import PatchCritic
from latentlm.codec.objectives import CodecLoss, CodecTerms, critic_loss
from latentlm.features import feature_net
from latentlm.load import save_codec
from latentlm.randomness import RowNoise
from latentlm.signals import pixels_to_signal
from latentlm_platform.batches.lane import Cursor, LaneSource
from latentlm_platform.batches.lanes import lanes_of
from latentlm_platform.batches.pixels import PixelGraph, open_pixels
from latentlm_platform.batches.shelves import StreamedShelf, order_of, wishes
from latentlm_platform.batches.streams import PictureBatch, Pictures, Share, read_ahead
from latentlm_platform.corpora.splits import Splits
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import CodecObjective, Experiment, ImageCodec
from latentlm_platform.hardware import pick_device
from latentlm_platform.tracking.journal import Journal
from latentlm_platform.training import checkpoints
from latentlm_platform.training.exported_encoder import load_encoder
from latentlm_platform.training.learning_rate import learning_rate_at
from latentlm_platform.training.parameter_groups import layer_decay_groups, set_learning_rate
from latentlm_platform.training.worker_group import note_end, stop_requested

STATE_FILE = "state.pt"


@dataclass(frozen=True)
class CodecTraining:
    """Everything a worker needs to train the codec."""

    key: str
    experiment: Experiment
    folder: Path
    splits: Splits

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def check_codec_files(experiment: Experiment) -> None:
    """The weights on disk that the codec's training reads fit it; UserError where they do not."""
    settings = experiment.codec.training
    if settings.encoder_weights is not None:
        load_encoder(build_codec(experiment.codec_settings()).encoder, settings.encoder_weights)
    if settings.objective.perceptual_weight > 0:
        perceptual_net(settings.objective)


def perceptual_net(objective: CodecObjective) -> Any:
    """The frozen net of the perceptual term; UserError where its weights cannot be used."""
    name, path = objective.perceptual_features, objective.perceptual_weights
    try:
        return feature_net(name, size=None, weights_path=path)
    except ValueError as error:
        raise UserError(
            f"codec.training.objective.perceptual_weights = {path} cannot be used: {error}"
        ) from error


def train_codec(job: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    CodecWorker(job["training"]).run()


class CodecWorker:
    """One rank of a codec's training."""

    def __init__(self, training: CodecTraining) -> None:
        import ray.train
        from ray.train.torch import prepare_model

        context = ray.train.get_context()
        self.training, self.experiment = training, training.experiment
        self.settings = training.experiment.codec.training
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.device = pick_device()
        torch.manual_seed(self.experiment.seed)
        self.codec = build_codec(self.experiment.codec_settings()).to(self.device)
        self.critic = PatchCritic(self.experiment.corpus.channels).to(self.device)
        self.parallel = prepare_model(self.codec)
        self.parallel_critic = prepare_model(self.critic)
        self.loss = self._build_loss()
        layer_decay = self.settings.encoder_layer_decay
        self.optimizers = [
            self._optimizer(self.codec, layer_decay=layer_decay),
            self._optimizer(self.critic, layer_decay=1.0),
        ]
        self.journal = Journal(training.folder / "journal.jsonl")
        lanes = self.experiment.corpus.lanes
        own = lanes_of(self.rank, workers=self.workers, lanes=lanes)
        self.cursors = {lane: Cursor.start(sources=1) for lane in own}
        self.step = self._restore()

    def _build_loss(self) -> CodecLoss:
        objective = self.settings.objective
        features: Any = None
        if objective.perceptual_weight > 0:
            features = perceptual_net(objective).to(self.device)
        codec = self.experiment.codec
        return CodecLoss(
            variance=codec.variance if isinstance(codec, ImageCodec) else None,
            pixel=objective.pixel,
            beta=objective.beta,
            perceptual_weight=objective.perceptual_weight,
            features=features,
            adversarial_weight=objective.adversarial_weight,
            adversarial_start_step=objective.adversarial_start_step,
        )

    def _optimizer(self, net: nn.Module, *, layer_decay: float) -> torch.optim.AdamW:
        optimizer = self.settings.optimizer
        groups = layer_decay_groups(
            net, weight_decay=optimizer.weight_decay, layer_decay=layer_decay
        )
        rate, betas = optimizer.learning_rate, optimizer.betas
        return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)

    def _restore(self) -> int:
        found, _ = checkpoints.newest_intact(self.training.checkpoints)
        if self.rank == 0:
            self.journal.truncate_after(found.step if found else 0)
        if found is None:
            if self.settings.encoder_weights is not None:
                load_encoder(self.codec.encoder, self.settings.encoder_weights)
            return 0
        state = torch.load(found.folder / STATE_FILE, map_location=self.device, weights_only=True)
        self.codec.load_state_dict(state["codec"])
        self.critic.load_state_dict(state["critic"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.cursors = checkpoints.read_cursors(found, self.cursors)
        return found.step

    def run(self) -> None:
        """Train to the last step or to a requested stop."""
        how = "finished"
        self.clock = time.perf_counter()  # a step's time includes its wait for data
        for batch in self._batches():
            stop = self._train_step(batch)
            last = self.step == self.settings.steps
            if last or stop or self.step % self.settings.checkpoint_every_steps == 0:
                self._save()
            if stop and not last:
                how = "stopped"
                break
        self.journal.close()
        if self.rank == 0:
            if how == "finished":
                save_codec(self.training.folder / "codec", codec=self.codec.eval())
            note_end(self.training.folder, how)
        dist.barrier()

    def _batches(self) -> Iterator[PictureBatch]:
        corpus, split = self.experiment.corpus, self.training.splits.train
        order = order_of(split, seed=self.experiment.seed)
        share = Share(self.settings.batch_size, corpus.lanes, self.workers)
        steps = self.settings.steps - self.step
        rows = steps * share.rows_a_lane
        wished = wishes(order, self.cursors, number=0)
        leg = order.chunks_for(rows, lanes=len(self.cursors))
        graph = PixelGraph(split, corpus.readers)
        source = LaneSource(
            name=corpus.source,
            order=order,
            shelf=StreamedShelf(wished, graph, open_pixels, leg=leg),
            seed=self.experiment.seed,
            flip=corpus.flip,
            max_bad_fraction=corpus.max_bad_fraction,
        )
        return read_ahead(Pictures(source, share, self.cursors), steps=steps)

    def _train_step(self, batch: PictureBatch) -> bool:
        pixels = torch.from_numpy(batch.pixels).to(self.device)
        ids, epochs = (torch.from_numpy(a).to(self.device) for a in (batch.ids, batch.epochs))
        noise = RowNoise(seed=self.experiment.seed, ids_B=ids, epochs_B=epochs)
        signal = pixels_to_signal(pixels)
        rate = learning_rate_at(self.step, self.settings.steps, self.settings.optimizer)
        reconstruction, posterior, _ = self.parallel(signal, noise=noise)
        self.critic.requires_grad_(False)
        terms = self.loss.terms(
            signal,
            reconstruction,
            posterior=posterior,
            step=self.step,
            critic=self.critic,
            last_weight=self.codec.last_weight,
        )
        norm = self._move(0, terms.total, rate)
        critic = terms.total.new_zeros(())
        if self.loss.adversarial_at(self.step):
            self.critic.requires_grad_(True)
            critic = critic_loss(
                self.parallel_critic, signal=signal, reconstruction=reconstruction.detach()
            )
            self._move(1, critic, rate)
        self.step += 1
        self.cursors = {lane: Cursor.of(state) for lane, state in batch.cursors.items()}
        return self._journal_step(terms, critic, norm=norm, rate=rate)

    def _move(self, index: int, loss: Tensor, learning_rate: float) -> Tensor:
        """Backward and one optimizer step; the gradient norm before clipping."""
        optimizer = self.optimizers[index]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.optimizer.clip_norm or math.inf)
        if torch.isfinite(norm):
            set_learning_rate(optimizer, learning_rate)
            optimizer.step()
        return norm

    def _journal_step(
        self, terms: CodecTerms, critic: Tensor, *, norm: Tensor, rate: float
    ) -> bool:
        """Write the step's means over ranks; whether a stop was asked for."""
        stop = float(self.rank == 0 and stop_requested(self.training.folder))
        parts = [t.detach().double() for t in (*terms, critic)]
        values = torch.stack([*parts, torch.tensor(stop, dtype=torch.float64, device=self.device)])
        dist.all_reduce(values)
        *means, stops = (values / self.workers).tolist()
        if not math.isfinite(means[0]) or not bool(torch.isfinite(norm)):
            raise UserError(
                f"the codec's loss is {means[0]} (gradient norm {float(norm)}) at step {self.step};"
                " lower codec.training.optimizer.learning_rate",
                exit_code=1,
            )
        if self.rank == 0:
            names = ("loss", *(f"loss_{name}" for name in terms._fields[1:]), "loss_critic")
            metrics = dict(zip(names, means, strict=True)) | {
                "learning_rate": rate,
                "gradient_norm": float(norm),
                "items_per_s": self.settings.batch_size / (time.perf_counter() - self.clock),
            }
            self.clock = time.perf_counter()
            self.journal.write(step=self.step, metrics=metrics)
        return stops > 0

    def _save(self) -> None:
        partial = checkpoints.partial_folder(self.training.checkpoints, self.step)
        states = checkpoints.gather_cursors(self.cursors)
        if self.rank == 0:
            partial.mkdir(parents=True, exist_ok=True)
            state = {
                "codec": self.codec.state_dict(),
                "critic": self.critic.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            }
            torch.save(state, partial / STATE_FILE)
            checkpoints.write_cursors(partial, states)
            checkpoints.commit(partial, {"key": self.training.key, "step": self.step})
            checkpoints.retain(self.training.checkpoints, latest=2, best=0)
        dist.barrier()
