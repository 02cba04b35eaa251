"""Decoding of documents: against a loop without cache or batch, rows in different modes at once."""

import dataclasses
from typing import Literal

import numpy as np
import pytest
import torch

from latentlm.decoder import Elements
from latentlm.diffusion.samplers import sample_x, solver_table
from latentlm.generate import generate
from latentlm.head_sampler import HeadSampler
from latentlm.models import LatentLM, null_ids
from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import LATENT, Document, LatentSpan, TextSpan
from latentlm.settings import (
    HeadSettings,
    LatentLMSettings,
    SamplerSettings,
    TextSamplerSettings,
)
from latentlm.vocabulary import special_ids
from latentlm.words import sample_words

SETTINGS = LatentLMSettings(
    vocabulary=12,
    latent_width=4,
    latent_count=3,
    width=16,
    depth=2,
    heads=4,
    kv_heads=2,
    ffn_width=32,
    head=HeadSettings(depth=2, ffn_width=24),
)
END, CONTINUE, EOD, BOD, PAD = special_ids(12)
SAMPLER = SamplerSettings(steps=3, guidance_interval=(0.0, 0.9))
SCALES = [1.0, 2.5, 0.5, 3.0, 1.0]
CAPACITY = 9


def text_span(*ids: int) -> TextSpan:
    return TextSpan(np.array(ids))


PROMPTS: list[Document] = [
    (text_span(1, 2, 3),),
    (text_span(4, BOD),),
    (text_span(5, 6, 1, 2, BOD),),
    (text_span(BOD), LatentSpan(np.ones((2, 4), np.float32))),
    (text_span(2),),
]


def make_model(stop: Literal["count", "eod", "continue"]) -> LatentLM:
    """Weights at which all stop rules stop, now and then, and words lead to BOD and END."""
    torch.manual_seed(5)
    model = LatentLM(dataclasses.replace(SETTINGS, stop=stop)).eval()
    for weight in (model.head.modulation.weight, model.head.output.weight):
        torch.nn.init.normal_(weight, std=0.2)
    torch.nn.init.normal_(model.softmax_head.weight, std=0.5)
    with torch.no_grad():
        model.latent_projection.weight.mul_(4)
    return model


def decode_alone(model: LatentLM, row: int, text: TextSamplerSettings) -> list[int | torch.Tensor]:
    """The definition: one row, whole prefixes, both streams anew for every element."""
    noise = RowNoise(seed=7, ids_B=torch.arange(5)).rows(torch.tensor([row]))
    table = solver_table(model.process, SAMPLER)
    elements: list[int | torch.Tensor] = []
    for span in PROMPTS[row]:
        values = span.token_ids.tolist() if isinstance(span, TextSpan) else span.latents_NZ
        elements += [v if isinstance(v, int) else torch.from_numpy(v) for v in values]
    start = len(elements)

    def state(*, null: bool) -> torch.Tensor:
        ids = torch.tensor([[e if isinstance(e, int) else LATENT for e in elements]])
        latents = torch.stack([torch.zeros(4) if isinstance(e, int) else e for e in elements])
        ids = null_ids(ids, model.settings) if null else ids
        return model.backbone(model.embed(ids, latents[None]))[:, -1]

    while len(elements) - start < CAPACITY:
        own = noise.at(torch.tensor([len(elements)]))
        run = 0
        while run < len(elements) and not isinstance(elements[-1 - run], int):
            run += 1
        hidden, last = state(null=False), elements[-1]
        logits = model.softmax_head(hidden)[0]
        if not run and last != BOD:
            logits[[PAD, CONTINUE, EOD]] = -torch.inf
            uniforms = own.uniform(Draw.TEXT)
            word = int(sample_words(logits[None], settings=text, uniforms_W=uniforms))
            elements.append(word)
            if word == END:
                break
            continue
        stops = {
            "count": run == 3,
            "eod": run > 0 and int(logits.argmax()) == EOD,
            "continue": run > 0 and bool(logits[EOD] > logits[CONTINUE]),
        }
        if stops[model.settings.stop]:
            elements.append(EOD)
            continue
        conditions = [model.head.condition(hidden), model.head.condition(state(null=True))]

        def denoise(
            x: torch.Tensor, i: int, conditions: list[torch.Tensor] = conditions
        ) -> torch.Tensor:
            time = torch.tensor([table[i].time])
            c, u = (model.head(x, time, condition=condition) for condition in conditions)
            scale = SCALES[row] if table[i].time / 1000 <= 0.9 else 1.0
            return u + scale * (c - u)

        initial = own.normal(Draw.INITIAL_NOISE, 4)
        elements.append(sample_x(denoise, initial, steps=table)[0])
    return elements[start:]


def flat(document: Document) -> list[int | torch.Tensor]:
    elements: list[int | torch.Tensor] = []
    for span in document:
        if isinstance(span, TextSpan):
            elements += span.token_ids.tolist()
        else:
            elements += list(torch.from_numpy(span.latents_NZ))
    return elements


def decode(model: LatentLM, rows: list[int], **how: object) -> list[list[int | torch.Tensor]]:
    found = generate(
        model,
        [PROMPTS[row] for row in rows],
        sampler=SAMPLER,
        noise=RowNoise(seed=7, ids_B=torch.tensor(rows)),
        capacity=CAPACITY,
        cfg_scales=[SCALES[row] for row in rows],
        **how,  # type: ignore[arg-type]
    )
    return [flat(document) for document in found]


def assert_same(found: list[int | torch.Tensor], wanted: list[int | torch.Tensor]) -> None:
    kinds = [e if isinstance(e, int) else "latent" for e in found]
    assert kinds == [e if isinstance(e, int) else "latent" for e in wanted]
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop", ["count", "eod", "continue"])
@pytest.mark.parametrize("text", [TextSamplerSettings(), TextSamplerSettings(temperature=0)])
@torch.inference_mode()
def test_a_batch_is_each_row_decoded_alone_without_a_cache(
    stop: Literal["count", "eod", "continue"], text: TextSamplerSettings
) -> None:
    model = make_model(stop)
    together = decode(model, list(range(5)), text=text)
    for row in range(5):
        assert_same(together[row], decode_alone(model, row, text))
    assert_same(decode(model, [3, 0], text=text)[0], together[3])


def test_the_cases_above_are_not_trivial() -> None:
    """Rows end early, switch modes both ways, and stand in different modes at one step."""
    model = make_model("count")
    modes: list[set[bool]] = []
    together = decode(
        model,
        list(range(5)),
        on_step=lambda given: modes.append({bool(i == LATENT) for i in given.ids_E.tolist()}),
    )
    assert {True, False} in modes
    words = [e for row in together for e in row if isinstance(e, int)]
    assert EOD in words
    assert BOD in words
    assert len({len(row) for row in together}) > 1
    assert any(isinstance(e, torch.Tensor) for row in together for e in row)


def test_elements_stream_as_they_are_drawn() -> None:
    steps: list[Elements] = []
    together = decode(make_model("count"), list(range(5)), on_step=steps.append)
    streamed: list[list[int | torch.Tensor]] = [[] for _ in range(5)]
    for step in steps:
        for place, row in enumerate(step.rows):
            word = int(step.ids_E[place])
            streamed[row].append(step.latents_EZ[place] if word == LATENT else word)
    for row in range(5):
        assert_same(streamed[row], together[row])


@torch.inference_mode()
def test_a_guided_row_keeps_its_twin_when_another_leaves() -> None:
    """Row 0 ends at once; the guided rows after it go on, and were first and last before."""
    model = make_model("count")
    prompts: list[Document] = [(text_span(1, BOD),), (text_span(5, 6, BOD),), (text_span(4, BOD),)]
    how = {"sampler": SAMPLER, "capacity": CAPACITY, "text": TextSamplerSettings(temperature=0)}
    with torch.no_grad():
        model.softmax_head.weight[END] = 0.0
    for leaving in range(3):
        ids = torch.arange(3)
        noise = RowNoise(seed=7, ids_B=ids)
        ended = [*prompts[:leaving], (text_span(2, END),), *prompts[leaving + 1 :]]
        # a row that is done before it starts, and one that the same weights end after its latents
        scales = [2.0, 3.0, 0.5]
        together = generate(model, ended, noise=noise, cfg_scales=scales, **how)  # type: ignore
        assert together[leaving] == ()
        for row in {0, 1, 2} - {leaving}:
            alone = generate(
                model,
                [prompts[row]],
                noise=noise.rows(torch.tensor([row])),
                cfg_scales=[scales[row]],
                **how,  # type: ignore
            )
            assert_same(flat(together[row]), flat(alone[0]))


@torch.inference_mode()
def test_twins_follow_their_rows_through_departures() -> None:
    """Class-conditional prompts of different lengths end at different steps, all of them guided."""
    torch.manual_seed(3)
    model = LatentLM(dataclasses.replace(SETTINGS, vocabulary=None, classes=3)).eval()
    for weight in (model.head.modulation.weight, model.head.output.weight):
        torch.nn.init.normal_(weight, std=0.2)
    given = [2, 0, 1]
    prompts: list[Document] = [
        (text_span(row), LatentSpan(np.full((count, 4), 0.5, np.float32)))[: 2 if count else 1]
        for row, count in enumerate(given)
    ]
    noise, scales = RowNoise(seed=7, ids_B=torch.arange(3)), [2.0, 3.0, 0.5]
    together = generate(model, prompts, sampler=SAMPLER, noise=noise, capacity=3, cfg_scales=scales)
    for row in range(3):
        alone = generate(
            model,
            [prompts[row]],
            sampler=SAMPLER,
            noise=noise.rows(torch.tensor([row])),
            capacity=3,
            cfg_scales=[scales[row]],
        )
        assert len(flat(together[row])) == 3 - given[row]
        assert_same(flat(together[row]), flat(alone[0]))


@torch.inference_mode()
def test_ancestral_noise_is_new_at_every_step() -> None:
    model = make_model("count")
    sampler = SamplerSettings(solver="ddpm", steps=4, cfg_scale=1.0)
    noise = RowNoise(seed=7, ids_B=torch.arange(1))
    ((span, *_),) = generate(model, [PROMPTS[1]], sampler=sampler, noise=noise, capacity=1)
    table, own = solver_table(model.process, sampler), noise.at(2)
    ids = torch.tensor([[4, BOD]])
    hidden = model.backbone(model.embed(ids, torch.zeros(1, 2, 4)))[:, -1]
    condition = model.head.condition(hidden)
    wanted = sample_x(
        lambda x, i: model.head(x, torch.tensor([table[i].time]), condition=condition),
        own.normal(Draw.INITIAL_NOISE, 4),
        steps=table,
        fresh=lambda i: own.at(i).normal(Draw.ANCESTRAL_NOISE, 4),
    )
    assert isinstance(span, LatentSpan)
    torch.testing.assert_close(torch.from_numpy(span.latents_NZ), wanted, rtol=1e-4, atol=1e-5)


def test_prompts_that_have_ended_give_nothing() -> None:
    noise = RowNoise(seed=0, ids_B=torch.arange(2))
    ended: list[Document] = [(text_span(2, END),), (text_span(END),)]
    model = make_model("count")
    assert generate(model, ended, sampler=SAMPLER, noise=noise, capacity=3) == [(), ()]


def test_a_schedule_needs_a_count_and_never_leaves_its_range() -> None:
    model = make_model("eod")
    with torch.no_grad():
        model.softmax_head.weight[EOD] = 0.0  # runs go on beyond latent_count
    seen: list[list[float]] = []
    decoder_scales = SamplerSettings(steps=2, guidance_schedule="rising")

    def watch(original: object) -> object:
        def sample(self, hidden, *, scales, **rest):  # type: ignore[no-untyped-def]
            seen.append(scales)
            return original(self, hidden, scales=scales, **rest)  # type: ignore[operator]

        return sample

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadSampler, "sample", watch(HeadSampler.sample))
        generate(
            model,
            [PROMPTS[1]],
            sampler=decoder_scales,
            noise=RowNoise(seed=0, ids_B=torch.arange(1)),
            capacity=6,
            cfg_scales=[3.0],
        )
    assert [scales[0] for scales in seen][:3] == [1.0, 2.0, 3.0]
    assert all(1.0 <= scales[0] <= 3.0 for scales in seen)


def test_rows_and_scales_must_agree() -> None:
    with pytest.raises(ValueError, match="2 prompts came with 1 guidance scales and noise of 2"):
        generate(
            make_model("count"),
            PROMPTS[:2],
            sampler=SAMPLER,
            noise=RowNoise(seed=0, ids_B=torch.arange(2)),
            capacity=1,
            cfg_scales=[1.0],
        )
