"""What evaluation keeps on an actor of Ray: a feature net, a model with its codec, a judge.

What is to be done with them is a function of a task's file, so that no task is known here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentlm.features import ImageFeatures, feature_net
from latentlm.load import load
from latentlm.metrics.classifier import SmallImageClassifier
from latentlm_platform.evaluation.judge import Judge
from latentlm_platform.hardware import pick_device

DESCRIBED_AT_ONCE = 64


class Described(NamedTuple):
    """What scores are computed from, one row an image: 9 KB with EfficientNet-Lite0."""

    features: np.ndarray  # fp32 [n, F]
    logits: np.ndarray  # fp32 [n, K] of the feature net's own classes
    predicted: np.ndarray  # int64 [n], the judge's class; -1 without a judge


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
    def perform(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """`function(self, **arguments)`: a task's work."""
        return function(self, **arguments)

    @torch.inference_mode()
    def describe(self, pixels_BYXC: Tensor) -> Described:
        """Features, logits and the judge's class of uint8 images."""
        parts = []
        for images_BCYX, seen in self._seen(pixels_BYXC):
            if self.judge is None:
                predicted = np.full(len(images_BCYX), -1, np.int64)
            else:
                predicted = self.judge(images_BCYX).argmax(1).cpu().numpy()
            features, logits = seen.pooled_BF.cpu().numpy(), seen.logits_BK.cpu().numpy()
            parts.append(Described(features, logits, predicted))
        return Described(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    @torch.inference_mode()
    def features(self, pixels_BYXC: Tensor) -> np.ndarray:
        """Features fp32 [n, F] of uint8 images."""
        return np.concatenate([seen.pooled_BF.cpu().numpy() for _, seen in self._seen(pixels_BYXC)])

    def _seen(self, pixels_BYXC: Tensor) -> list[tuple[Tensor, ImageFeatures]]:
        parts = pixels_BYXC.movedim(-1, 1).to(self.device).split(DESCRIBED_AT_ONCE)
        return [(images_BCYX, self.net(images_BCYX)) for images_BCYX in parts]
