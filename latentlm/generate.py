"""Generation (§2.2): documents in, documents out, through the key-value cached decoder.

`sample_latents` is the class-conditional case as one tensor; `generate` takes any documents.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from latentlm.decoder import Decoder, Decoding, Elements, Prompts
from latentlm.diffusion.samplers import Watch, guided_rows, scheduled_scale
from latentlm.models import CodeLM, DiT, LatentLM, sample_all_latents
from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import LATENT, Document, LatentSpan, TextSpan, pack
from latentlm.settings import SamplerSettings, TextSamplerSettings
from latentlm.words import sample_words


@torch.inference_mode()
def sample_latents(
    model: LatentLM | DiT | CodeLM,
    labels_B: Tensor,
    *,
    cfg_scales_B: Tensor,
    sampler: SamplerSettings,
    noise: RowNoise,
    text: TextSamplerSettings | None = None,
    compiled: bool = False,
    progress: Callable[[int, int], None] | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Normalised latents (B, N, Z) fp32 of a class-conditional model, for labels (B,).

    cfg_scales_B (B,) is each row's guidance scale and stands in for `sampler.cfg_scale`; a row of
    scale 1 runs no null stream. labels and noise are on the model's device. `progress` is called
    with (latents done, N), of a DiT, which draws all at once, with (evaluations done, of how many).
    `text` says how codes are drawn, which are a latent of width 1 each; `compiled` is for LatentLM
    alone; `watch` is what `solver_states` looks through. Raises ValueError when labels and scales
    differ in length.
    """
    if not len(labels_B) == len(cfg_scales_B) == len(noise) or not len(labels_B):
        raise ValueError(
            f"{len(labels_B)} labels came with {len(cfg_scales_B)} guidance scales and noise of"
            f" {len(noise)} rows; give one each, and one label or more"
        )
    if isinstance(model, DiT):
        return sample_all_latents(
            model,
            labels_B,
            cfg_scales_B=cfg_scales_B,
            sampler=sampler,
            noise=noise,
            progress=progress,
            watch=watch,
        )
    if isinstance(model, CodeLM):
        text = text or TextSamplerSettings()
        return _sample_codes(
            model, labels_B, scales_B=cfg_scales_B, sampler=sampler, text=text, noise=noise
        )
    how = Decoding(
        scales=cfg_scales_B.tolist(),
        capacity=model.settings.latent_count or 0,
        sampler=sampler,
        noise=noise,
        compiled=compiled,
        watch=watch,
    )
    return _sample_in_order(model, labels_B, how=how, progress=progress)


def _sample_in_order(
    model: LatentLM,
    labels_B: Tensor,
    *,
    how: Decoding,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """A LatentLM's latents (B, N, Z), one after another."""
    settings = model.settings
    if settings.vocabulary is not None or settings.latent_count is None:
        raise ValueError("this model has a vocabulary, not classes; use generate()")
    steps: list[Tensor] = []

    def keep(given: Elements) -> None:
        steps.append(given.latents_EZ)
        if progress is not None:
            progress(len(steps), settings.latent_count or 0)

    empty_B1Z = torch.zeros(len(labels_B), 1, settings.latent_width, device=labels_B.device)
    prompts = Prompts(labels_B[:, None], empty_B1Z)
    Decoder(model, prompts, replace(how, on_step=keep)).run()
    return torch.stack(steps, dim=1)


def solver_states(
    model: LatentLM | DiT,
    labels_B: Tensor,
    *,
    cfg_scales_B: Tensor,
    sampler: SamplerSettings,
    noise: RowNoise,
) -> Tensor:
    """From noise to sample: (S + 1, B, N, Z) fp32, the last of which `sample_latents` returns.

    State s holds every latent after s steps of its own solver loop. In LatentLM a latent is drawn
    once those before it are, so that no state but the last existed at one time.
    """
    seen: list[Tensor] = []
    sample_latents(
        model,
        labels_B,
        cfg_scales_B=cfg_scales_B,
        sampler=sampler,
        noise=noise,
        watch=seen.append,
    )
    states = torch.stack(seen)
    if isinstance(model, DiT):
        return states
    return states.unflatten(0, (model.settings.latent_count or 0, -1)).permute(1, 2, 0, 3)


def _sample_codes(
    model: CodeLM,
    labels_B: Tensor,
    *,
    scales_B: Tensor,
    sampler: SamplerSettings,
    text: TextSamplerSettings,
    noise: RowNoise,
) -> Tensor:
    """Ids of codes (B, N, 1) as fp32. Guidance u + s (c - u) is of logits, before temperature."""
    count, twins = model.settings.latent_count, guided_rows(scales_B)
    null_R = torch.full_like(labels_B[twins], model.settings.classes)
    x_P1D = model.class_embedding(torch.cat((labels_B, null_R)))[:, None]
    cache = model.backbone.new_cache(capacity=count, device=labels_B.device)
    codes: list[Tensor] = []
    for n in range(count):
        logits_PV = model.softmax_head(model.backbone.extend(x_P1D, cache=cache)[:, -1])
        logits_BV, null_RV = logits_PV[: len(labels_B)], logits_PV[len(labels_B) :]
        scale_R1 = scheduled_scale(
            scales_B[twins, None].float(),
            fraction=n / max(1, count - 1),
            schedule=sampler.guidance_schedule,
        )
        guided_RV = torch.lerp(null_RV, logits_BV[twins], scale_R1)
        ids_B = sample_words(
            logits_BV.index_copy(0, twins, guided_RV),
            settings=text,
            uniforms_W=noise.at(n + 1).uniform(Draw.TEXT),
        )
        codes.append(ids_B)
        x_P1D = model.code_embedding(torch.cat((ids_B, ids_B[twins])))[:, None]
    return torch.stack(codes, dim=1).unsqueeze(-1).float()


@torch.inference_mode()
def generate(
    model: LatentLM,
    prompts: Sequence[Document],
    *,
    sampler: SamplerSettings,
    noise: RowNoise,
    capacity: int,
    text: TextSamplerSettings | None = None,
    cfg_scales: Sequence[float] | None = None,
    compiled: bool = False,
    on_step: Callable[[Elements], None] | None = None,
) -> list[Document]:
    """What follows each prompt: up to `capacity` elements, as spans of words and of latents.

    Rows may be in different modes at once; each is drawn with its own noise and would come out the
    same alone. cfg_scales: one a row; without it `sampler.cfg_scale`. Words of our own (BOD, EOD,
    END) stay in the spans. `on_step` streams: it is called with the elements of every step.
    """
    scales = [sampler.cfg_scale] * len(prompts) if cfg_scales is None else list(cfg_scales)
    if not len(prompts) == len(scales) == len(noise) or not len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts came with {len(scales)} guidance scales and noise of"
            f" {len(noise)} rows; give one each, and one prompt or more"
        )
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; give 1 or more elements to add")
    if not all(sum(len(span) for span in prompt) for prompt in prompts):
        raise ValueError("a prompt is empty; give it at least one word, label or latent")
    device = model.device
    words: list[list[int]] = [[] for _ in prompts]
    latents: list[list[Tensor]] = [[] for _ in prompts]

    def keep(given: Elements) -> None:
        for place, (row, word) in enumerate(zip(given.rows, given.ids_E.tolist(), strict=True)):
            words[row].append(word)
            if word == LATENT:
                latents[row].append(given.latents_EZ[place])
        if on_step is not None:
            on_step(given)

    how = Decoding(
        scales=scales,
        capacity=capacity,
        sampler=sampler,
        noise=noise,
        text=text or TextSamplerSettings(),
        compiled=compiled,
        on_step=keep,
    )
    Decoder(model, flush_right(prompts, model=model, device=device), how).run()
    return [_spans(ids, found) for ids, found in zip(words, latents, strict=True)]


def flush_right(
    prompts: Sequence[Document], *, model: LatentLM | DiT | CodeLM, device: torch.device
) -> Prompts:
    """Prompts as a batch, the short ones behind empty columns."""
    sizes = [sum(len(span) for span in prompt) for prompt in prompts]
    width = model.settings.latent_width
    longest = max(sizes)
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.int64)
    latents_BTZ = torch.zeros(len(prompts), longest, width)
    for row, (prompt, size) in enumerate(zip(prompts, sizes, strict=True)):
        alone = pack([prompt], length=size, latent_width=width)
        ids_BT[row, longest - size :] = alone.ids_BT[0]
        latents_BTZ[row, longest - size :] = alone.latents_BTZ[0]
    padding_B = None
    if min(sizes) < longest:
        padding_B = longest - torch.tensor(sizes, device=device)
    return Prompts(ids_BT.to(device), latents_BTZ.to(device), padding_B)


def _spans(words: list[int], latents: list[Tensor]) -> Document:
    """Runs of words and runs of latents, in order."""
    spans: list[TextSpan | LatentSpan] = []
    edges = [i for i in range(1, len(words)) if (words[i] == LATENT) != (words[i - 1] == LATENT)]
    taken = 0
    for start, stop in zip([0, *edges], [*edges, len(words)], strict=True):
        if start == stop:
            continue
        if words[start] == LATENT:
            run = torch.stack(latents[taken : taken + stop - start]).cpu().numpy()
            taken += stop - start
            spans.append(LatentSpan(run))
        else:
            spans.append(TextSpan(np.array(words[start:stop], np.int64)))
    return tuple(spans)
