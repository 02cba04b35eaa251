"""A latent for each hidden state: the diffusion head's whole solver loop, with guidance (§2.1).

Everything that does not depend on the noisy latent is computed once: solver coefficients and
timestep embeddings a decoding, modulations a latent. On CUDA the loop is captured as a graph.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentlm.diffusion.packed_head import decoding_head
from latentlm.diffusion.samplers import (
    Watch,
    guidance_table,
    guided,
    guided_steps,
    sample_x,
    solver_table,
)
from latentlm.models import LatentLM
from latentlm.randomness import Draw, RowNoise
from latentlm.settings import SamplerSettings

WARM_UPS = 3  # calls before a capture, so that allocator and kernels have settled


@dataclass
class _Captured:
    """A CUDA graph of one loop, and the memory it reads and writes."""

    graph: Any
    hidden_PD: Tensor
    initial_KZ: Tensor
    latents_KZ: Tensor


@dataclass
class _Guidance:
    """The scales (S, K) of a set of rows, which have a twin, and the loop captured for them."""

    key: tuple[int, tuple[int, ...]]
    scales: list[float]
    scales_SK: Tensor
    rows: Tensor
    captured: _Captured | None = None


class HeadSampler:
    """One model's head under one `SamplerSettings`; `compiled` compiles it with torch.compile.

    `watch` sees the states (K, Z) of one latent after another.
    """

    def __init__(
        self,
        model: LatentLM,
        sampler: SamplerSettings,
        *,
        compiled: bool,
        watch: Watch | None = None,
    ) -> None:
        self.watch = watch
        self.head = model.head if compiled else decoding_head(model.head)
        self.sampler = sampler
        self.width = model.settings.latent_width
        self.table = solver_table(model.process, sampler)
        self.times = [step.time for step in self.table]
        self.timesteps = model.process.settings.timesteps
        self.active = guided_steps(
            self.times, process_timesteps=self.timesteps, interval=sampler.guidance_interval
        )
        device = model.device
        self.embedding_S1D = model.head.embed_timesteps(
            torch.tensor(self.times, device=device)
        ).unsqueeze(1)
        self.denoise: Callable[..., Tensor] = self.head.denoise
        if compiled:
            self.denoise = torch.compile(model.head.denoise, dynamic=False)
        self.guidance: _Guidance | None = None

    def sample(
        self, hidden_PD: Tensor, *, scales: list[float], guided_rows: list[int], noise: RowNoise
    ) -> Tensor:
        """Latents (K, Z) fp32 for K rows: hidden states of the K rows, then of the null twins.

        `scales` has one guidance scale a row, `guided_rows` the rows that have a twin, in the
        order of the twins; noise is keyed by row.
        """
        guidance = self._guidance(scales, guided_rows, hidden_PD.device)
        initial_KZ = noise.normal(Draw.INITIAL_NOISE, self.width) * self.sampler.temperature
        captured = hidden_PD.is_cuda and self.watch is None
        if captured and not any(step.fresh for step in self.table):
            return self._replay(guidance, hidden_PD, initial_KZ)
        return self._solve(guidance, hidden_PD, initial_KZ, noise)

    def _solve(
        self, guidance: _Guidance, hidden_PD: Tensor, initial_KZ: Tensor, noise: RowNoise | None
    ) -> Tensor:
        condition_PD = self.head.condition(hidden_PD)
        modulation_SPR = self.head.modulate(condition_PD, self.embedding_S1D)
        rows = len(initial_KZ)

        def denoise(x: Tensor, index: int) -> Tensor:
            modulation_PR = modulation_SPR[index]
            if len(x) == rows < len(modulation_PR):  # a step without guidance
                modulation_PR = modulation_PR[:rows]
            return self.denoise(x, modulation_PR)

        def fresh(index: int) -> Tensor:
            assert noise is not None  # only tables without fresh noise are captured
            return noise.at(index).normal(Draw.ANCESTRAL_NOISE, self.width)

        return sample_x(
            guided(denoise, scales_SB=guidance.scales_SK, rows=guidance.rows, active_S=self.active),
            initial_KZ,
            steps=self.table,
            fresh=fresh,
            watch=self.watch,
        )

    def _guidance(
        self, scales: list[float], guided_rows: list[int], device: torch.device
    ) -> _Guidance:
        """Kept while the rows stay the same; new scales are written into the same memory."""
        key, kept = (len(scales), tuple(guided_rows)), self.guidance
        if kept is not None and kept.key == key and kept.scales == scales:
            return kept
        table_SK = guidance_table(
            torch.tensor(scales, device=device),
            times_S=self.times,
            process_timesteps=self.timesteps,
            interval=self.sampler.guidance_interval,
        )
        if kept is not None and kept.key == key:
            kept.scales_SK.copy_(table_SK)
            kept.scales = scales
            return kept
        rows = torch.tensor(guided_rows, dtype=torch.int64, device=device)
        self.guidance = _Guidance(key, scales, table_SK, rows)
        return self.guidance

    def _replay(self, guidance: _Guidance, hidden_PD: Tensor, initial_KZ: Tensor) -> Tensor:
        """The same loop as one CUDA graph: its kernels are too small to launch one by one."""
        if guidance.captured is None:
            guidance.captured = self._capture(guidance, hidden_PD.clone(), initial_KZ.clone())
        captured = guidance.captured
        captured.hidden_PD.copy_(hidden_PD)
        captured.initial_KZ.copy_(initial_KZ)
        captured.graph.replay()
        return captured.latents_KZ.clone()

    def _capture(self, guidance: _Guidance, hidden_PD: Tensor, initial_KZ: Tensor) -> _Captured:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._solve(guidance, hidden_PD, initial_KZ, None)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            latents_KZ = self._solve(guidance, hidden_PD, initial_KZ, None)
        return _Captured(graph, hidden_PD, initial_KZ, latents_KZ)
