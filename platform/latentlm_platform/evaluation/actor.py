"""What evaluation runs on Ray: the judge's training, and actors that generate and describe."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentlm.features import feature_net
from latentlm.generate import sample_latents, solver_states
from latentlm.head_sampler import HeadSampler
from latentlm.load import load
from latentlm.metrics.classifier import SmallImageClassifier, train_classifier
from latentlm.metrics.exposure_bias import ExposureMoments, teacher_forced_latents
from latentlm.metrics.reconstruction import psnr, ssim
from latentlm.models import CodeLM, LatentLM
from latentlm.randomness import RowNoise
from latentlm.settings import SamplerSettings
from latentlm.signals import pixels_to_signal, signal_to_pixels
from latentlm_platform.batches.ordering import SampleOrder
from latentlm_platform.corpora.splits import Split, Splits
from latentlm_platform.evaluation.codec_scores import read_labelled
from latentlm_platform.experiment.sections import Sample
from latentlm_platform.hardware import pick_device
from latentlm_platform.runs import exclusive

EVALUATION_EPOCH = 2**31 + 1  # keys the noise of generation apart from every training epoch's
FORCED_EPOCH = 2**31 + 2  # and teacher-forced latents apart from free-running ones
JUDGE_BATCH = 128
JUDGE_BYTES = 2**30
JUDGED_IMAGES = 10_000
DESCRIBED_AT_ONCE = 64
JUDGE_FILE = "judge.pt"


class Described(NamedTuple):
    """What scores are computed from, one row an image."""

    features: np.ndarray
    logits: np.ndarray
    predicted: np.ndarray


class Judge(NamedTuple):
    """A classifier of this corpus as plain data, and how often it is right on held-out images."""

    state: dict[str, Tensor]
    channels: int
    classes: int
    correct: int
    judged: int

    def build(self) -> SmallImageClassifier:
        """The classifier, ready to judge."""
        generator = torch.Generator().manual_seed(0)
        net = SmallImageClassifier(
            channels=self.channels, classes=self.classes, generator=generator
        )
        net.load_state_dict(self.state)
        return net.eval().requires_grad_(False)


def shared_judge(folder: Path, splits: Splits, *, epochs: int, items: int, seed: int) -> Judge:
    """The judge kept in `folder`, trained and examined there the first time."""
    with exclusive(folder):
        if (judge := read_judge(folder)) is not None:
            return judge
        judge = train_judge(splits, epochs=epochs, items=items, seed=seed)
        path = folder / JUDGE_FILE
        torch.save(judge._asdict(), path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
        return judge


def read_judge(folder: Path) -> Judge | None:
    """The judge kept in `folder`, or None."""
    path = folder / JUDGE_FILE
    return Judge(**torch.load(path, weights_only=True)) if path.exists() else None


def train_judge(splits: Splits, *, epochs: int, items: int, seed: int) -> Judge:
    """Learn the corpus's classes from its training images, one thread, deterministically."""
    torch.set_num_threads(1)
    split, corpus = splits.train, splits.train.corpus
    window = corpus.shuffle_window_chunks
    order = SampleOrder(split.chunk_sizes, seed=seed, window_chunks=window)
    items = min(items, order.epoch_length)
    batch = min(JUDGE_BATCH, items)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (items // batch)
    net = train_classifier(
        _judge_batches(split, order, epochs=epochs, steps=items // batch, batch=batch),
        channels=corpus.channels,
        classes=corpus.classes,
        steps_total=steps,
        generator=generator,
    )
    pixels, labels = read_labelled(splits.held_out, JUDGED_IMAGES)
    with torch.inference_mode():
        said = [
            net(torch.from_numpy(part).movedim(-1, 1)).argmax(1)
            for part in np.array_split(pixels, -(-len(pixels) // JUDGE_BATCH))
        ]
    correct = int((torch.cat(said).numpy() == labels).sum())
    return Judge(net.state_dict(), corpus.channels, corpus.classes, correct, len(labels))


def _judge_batches(
    split: Split, order: SampleOrder, *, epochs: int, steps: int, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of uint8 images (B, C, Y, X) and labels: `steps` of them, `epochs` times over.

    As much as fits a gigabyte is decoded once and shown `epochs` times before what comes next.
    """
    corpus = split.corpus
    shuffling = torch.Generator().manual_seed(order.seed)
    together = max(1, JUDGE_BYTES // (batch * corpus.image_size**2 * corpus.channels))
    for first in range(0, steps, together):
        last = min(first + together, steps)
        signals = split.decode_rows(order.rows(first * batch, last * batch))
        pixels = torch.from_numpy(signals.pixels).movedim(-1, 1)
        labels = torch.from_numpy(signals.labels)
        for _ in range(epochs):
            for some in torch.randperm(len(labels), generator=shuffling).split(batch):
                yield pixels[some], labels[some]


class EvaluatorActor:
    """A feature net, and the model and the judge that it was told to use."""

    def __init__(self, *, extractor: str, feature_size: int) -> None:
        torch.set_num_threads(1)
        self.device = pick_device()
        net: Any = feature_net(extractor, size=feature_size)
        self.net = net.to(self.device)
        self.export: Path | None = None
        self.judge: SmallImageClassifier | None = None

    def use_export(self, export: Path) -> None:
        """Use this model and its codec from now on; the one in use is not read again."""
        if export != self.export:
            loaded = load(export)
            self.model, self.codec = loaded.model.to(self.device), loaded.codec.to(self.device)
            self.export = export

    def use_judge(self, judge: Judge) -> None:
        """Use this classifier from now on."""
        self.judge = judge.build().to(self.device)

    @torch.inference_mode()
    def reconstruct(self, pixels: np.ndarray) -> dict[str, Any]:
        """Images through the codec without noise: features of both, PSNR and SSIM of each."""
        real, rebuilt, scores = [], [], []
        for batch in np.array_split(pixels, -(-len(pixels) // DESCRIBED_AT_ONCE)):
            signal = pixels_to_signal(torch.from_numpy(batch.copy())).to(self.device)
            decoded = self.codec.decode(self.codec.encode(signal).mean_BNZ)
            scores.append(torch.stack([psnr(decoded, signal), ssim(decoded, signal)]).cpu())
            real.append(self._features(torch.from_numpy(batch.copy())))
            rebuilt.append(self._features(signal_to_pixels(decoded)))
        return {
            "real": np.concatenate(real),
            "rebuilt": np.concatenate(rebuilt),
            "psnr": torch.cat(scores, dim=1)[0].numpy(),
            "ssim": torch.cat(scores, dim=1)[1].numpy(),
        }

    @torch.inference_mode()
    def describe(self, pixels: np.ndarray) -> Described:
        """Features, ImageNet logits and the judge's class of images."""
        parts = np.array_split(pixels, -(-len(pixels) // DESCRIBED_AT_ONCE))
        described = [self._describe(torch.from_numpy(part.copy())) for part in parts]
        return Described(*(np.concatenate(column) for column in zip(*described, strict=True)))

    @torch.inference_mode()
    def generate(
        self,
        *,
        labels: np.ndarray,
        ids: np.ndarray,
        cfg_scales: np.ndarray,
        sampler: Sample,
        seed: int,
    ) -> tuple[np.ndarray, Described, float]:
        """(pixels, what they look like, CPU seconds) of one batch; row noise is keyed by id."""
        started = time.process_time()
        noise = RowNoise(
            seed=seed, ids_B=torch.from_numpy(ids).to(self.device), epochs_B=EVALUATION_EPOCH
        )
        latents_BNZ = sample_latents(
            self.model,
            torch.from_numpy(labels).to(self.device),
            cfg_scales_B=torch.from_numpy(cfg_scales).float().to(self.device),
            sampler=sampler,
            noise=noise,
            text=sampler.text,
        )
        decoded = self.codec.decode(self.codec.denormalise(latents_BNZ))
        pixels = signal_to_pixels(decoded).cpu().numpy()
        seconds = time.process_time() - started
        return pixels, self.describe(pixels), seconds

    @torch.inference_mode()
    def trace(
        self, *, labels: np.ndarray, cfg_scale: float, sampler: Sample, seed: int, states: int
    ) -> np.ndarray:
        """uint8 (B, S, Y, X, C): the first images of these labels at that scale, from noise to
        sample, S of their solver's states spread evenly, both ends among them."""
        assert not isinstance(self.model, CodeLM)  # its words are drawn, not denoised
        ids_B = torch.arange(len(labels), device=self.device)
        found_SBNZ = solver_states(
            self.model,
            torch.from_numpy(labels).to(self.device),
            cfg_scales_B=torch.full((len(labels),), cfg_scale, device=self.device),
            sampler=sampler,
            noise=RowNoise(seed=seed, ids_B=ids_B, epochs_B=EVALUATION_EPOCH),
        )
        last = len(found_SBNZ) - 1
        chosen = torch.linspace(0, last, min(states, last + 1)).round().long()
        latents_BSNZ = found_SBNZ[chosen].transpose(0, 1)
        decoded = self.codec.decode(self.codec.denormalise(latents_BSNZ.flatten(0, 1)))
        pixels: np.ndarray = signal_to_pixels(decoded).cpu().numpy()
        return pixels.reshape(len(labels), len(chosen), *pixels.shape[1:])

    @torch.inference_mode()
    def expose(
        self,
        *,
        pixels: np.ndarray,
        labels: np.ndarray,
        ids: np.ndarray,
        cfg_scales: tuple[float, ...],
        sampler: SamplerSettings,
        seed: int,
    ) -> dict[float, ExposureMoments]:
        """At each scale, real, teacher-forced and free-running latents of these images' labels."""
        assert isinstance(self.model, LatentLM)  # score_exposure asks no other
        ids_B, labels_B = (torch.from_numpy(a.copy()).to(self.device) for a in (ids, labels))
        free, forced = (
            RowNoise(seed=seed, ids_B=ids_B, epochs_B=epoch)
            for epoch in (EVALUATION_EPOCH, FORCED_EPOCH)
        )
        signal = pixels_to_signal(torch.from_numpy(pixels.copy())).to(self.device)
        real_BNZ = self.codec.normalise(self.codec.draw(self.codec.encode(signal), noise=forced))
        head = HeadSampler(self.model, sampler, compiled=False)
        found = {}
        for scale in cfg_scales:
            scales_B = torch.full(labels_B.shape, scale, device=self.device)
            moments = ExposureMoments.of_shape(*real_BNZ.shape[1:])
            moments.add(
                ids_B=ids_B,
                real_BNZ=real_BNZ,
                teacher_forced_BNZ=teacher_forced_latents(
                    self.model, real_BNZ, labels_B, cfg_scales_B=scales_B, head=head, noise=forced
                ),
                free_running_BNZ=sample_latents(
                    self.model, labels_B, cfg_scales_B=scales_B, sampler=sampler, noise=free
                ),
            )
            found[scale] = moments
        return found

    def _describe(self, pixels_BYXC: Tensor) -> Described:
        images_BCYX = pixels_BYXC.movedim(-1, 1).to(self.device)
        seen = self.net(images_BCYX)
        if self.judge is None:
            predicted = np.full(len(pixels_BYXC), -1, np.int64)
        else:
            predicted = self.judge(images_BCYX).argmax(1).cpu().numpy()
        return Described(seen.pooled_BF.cpu().numpy(), seen.logits_BK.cpu().numpy(), predicted)

    def _features(self, pixels_BYXC: Tensor) -> np.ndarray:
        features: np.ndarray = self._describe(pixels_BYXC).features
        return features
