"""The decoding loop of §2.2: rows of text and latents, each in its own mode, in one batch.

A row is in text mode until it draws BOD; then it is in latent mode, where each state gives a
latent, until its stop rule gives EOD. Guided rows have a twin without condition, which is fed the
same elements; both kinds of stream share every forward pass, the prompt's included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from latentlm.backbone import BackboneCache
from latentlm.diffusion.samplers import Watch, scheduled_scale
from latentlm.head_sampler import HeadSampler
from latentlm.models import LatentLM, null_ids
from latentlm.packed_linear import packed
from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import LATENT
from latentlm.settings import SamplerSettings, TextSamplerSettings
from latentlm.vocabulary import special_ids
from latentlm.words import sample_words

Mode = Literal["text", "latent", "done"]


class Prompts(NamedTuple):
    """Prompts flush right: ids_BT int64 (LATENT where a latent is), latents_BTZ, and how many
    columns of each row are empty, or None where none is."""

    ids_BT: Tensor
    latents_BTZ: Tensor
    padding_B: Tensor | None = None


class Elements(NamedTuple):
    """What one step gave: the rows that got something, their words (LATENT) and their latents."""

    rows: list[int]
    ids_E: Tensor
    latents_EZ: Tensor


@dataclass
class Row:
    """Where a row stands: its mode, its position, and the latents since BOD."""

    mode: Mode
    position: int
    run: int = 0


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to decode. `scales` guide each row; `capacity` is the number of elements to add at most.

    `on_step` is called with what each step gave, while decoding goes on; `watch` with the solver's
    states of each latent.
    """

    scales: Sequence[float]
    capacity: int
    sampler: SamplerSettings
    noise: RowNoise
    text: TextSamplerSettings = field(default_factory=TextSamplerSettings)
    compiled: bool = False
    on_step: Callable[[Elements], None] | None = None
    watch: Watch | None = None


class Decoder:
    """One batch being decoded; a row that is done leaves it.

    Streams are the `live` rows in order, then the `twins` of those that are guided.
    """

    def __init__(self, model: LatentLM, prompts: Prompts, how: Decoding) -> None:
        self.model, self.how, self.settings = model, how, model.settings
        self.backbone = packed(model.backbone)
        self.head = HeadSampler(model, how.sampler, compiled=how.compiled, watch=how.watch)
        self.device = prompts.ids_BT.device
        self.special = special_ids(self.settings.vocabulary or 0)  # unused without a vocabulary
        self.rows = self._rows(prompts)
        self.live = [i for i, row in enumerate(self.rows) if row.mode != "done"]
        self.twins = [row for row in self.live if how.scales[row] != 1]
        if self.live:
            self.hidden_RD, self.cache = self._prefill(prompts)

    def run(self) -> None:
        """Decode until every row is done or has `capacity` more elements."""
        for added in range(1, self.how.capacity + 1) if self.live else ():
            given = self._step()
            if self.how.on_step is not None:
                self.how.on_step(given)
            stays = [i for i, row in enumerate(self.live) if self.rows[row].mode != "done"]
            if not stays or added == self.how.capacity:
                return
            if len(stays) < len(self.live):
                given = self._keep(stays, given)
            self._feed(given)

    def _rows(self, prompts: Prompts) -> list[Row]:
        columns = prompts.ids_BT.shape[1]
        padding = [0] * len(prompts.ids_BT)
        if prompts.padding_B is not None:
            padding = prompts.padding_B.tolist()
        last, runs = prompts.ids_BT[:, -1].tolist(), _runs(prompts.ids_BT)
        rows = [
            Row(self._mode_after(word), columns - empty, run)
            for word, empty, run in zip(last, padding, runs, strict=True)
        ]
        for row in rows:
            self._finish_labelled(row)
        return rows

    def _finish_labelled(self, row: Row) -> None:
        """A row of a class-conditional model is done with its last latent."""
        if self.settings.vocabulary is None and row.run >= (self.settings.latent_count or 0):
            row.mode = "done"

    def _prefill(self, prompts: Prompts) -> tuple[Tensor, BackboneCache]:
        streams = torch.tensor(self.live + self.twins, device=self.device)
        ids_RT = prompts.ids_BT[streams]
        count = len(self.live)
        ids_RT[count:] = null_ids(ids_RT[count:], self.settings)
        padding_R = None if prompts.padding_B is None else prompts.padding_B[streams]
        cache = self.model.backbone.new_cache(
            capacity=ids_RT.shape[1] + self.how.capacity - 1,
            device=self.device,
            padding_B=padding_R,
        )
        x_RTD = self.model.embed(ids_RT, prompts.latents_BTZ[streams])
        hidden_RTD = self.backbone.extend(x_RTD, cache=cache)
        return hidden_RTD[:, -1], cache

    def _step(self) -> Elements:
        """One element for every live row."""
        width = self.settings.latent_width
        ids_E = torch.full((len(self.live),), LATENT, device=self.device)
        latents_EZ = torch.zeros(len(self.live), width, device=self.device)
        text = [i for i, row in enumerate(self.live) if self.rows[row].mode == "text"]
        latent = [i for i, row in enumerate(self.live) if self.rows[row].mode == "latent"]
        ending = set(self._ending(latent))
        latent = [i for i in latent if i not in ending]
        if text:
            ids_E[text] = self._words(text)
        if ending:
            ids_E[sorted(ending)] = self.special.eod
        if len(latent) == len(self.live):
            latents_EZ = self._latents(latent)
        elif latent:
            latents_EZ[latent] = self._latents(latent)
        self._advance(text, ending, latent, ids_E)
        return Elements(list(self.live), ids_E, latents_EZ)

    def _ending(self, places: list[int]) -> list[int]:
        """Which rows in latent mode end their run of latents here."""
        runs = {i: self.rows[self.live[i]].run for i in places}
        if self.settings.stop == "count":
            return [i for i, run in runs.items() if run >= (self.settings.latent_count or 0)]
        asked = [i for i, run in runs.items() if run > 0]
        if not asked:
            return []
        logits_EV = self.model.softmax_head(self.hidden_RD[asked])
        if self.settings.stop == "continue":
            stops = logits_EV[:, self.special.eod] > logits_EV[:, self.special.go_on]
        else:
            stops = logits_EV.argmax(dim=1) == self.special.eod
        return [i for i, stop in zip(asked, stops.tolist(), strict=True) if stop]

    def _words(self, places: list[int]) -> Tensor:
        logits_WV = self.model.softmax_head(self.hidden_RD[places])
        logits_WV[:, [self.special.pad, self.special.go_on, self.special.eod]] = -torch.inf
        uniforms_W = self._noise(places).uniform(Draw.TEXT)
        return sample_words(logits_WV, settings=self.how.text, uniforms_W=uniforms_W)

    def _latents(self, places: list[int]) -> Tensor:
        """Latents (K, Z) of the rows at these places of `live`."""
        rows = [self.live[i] for i in places]
        place_of = {row: twin for twin, row in enumerate(self.twins)}
        twins = [place_of[row] for row in rows if row in place_of]
        streams = places + [len(self.live) + twin for twin in twins]
        whole = len(streams) == len(self.hidden_RD)
        return self.head.sample(
            self.hidden_RD if whole else self.hidden_RD[streams],
            scales=[self._scale(row) for row in rows],
            guided_rows=[k for k, row in enumerate(rows) if self.how.scales[row] != 1],
            noise=self._noise(places),
        )

    def _scale(self, row: int) -> float:
        schedule, count = self.how.sampler.guidance_schedule, self.settings.latent_count
        scale = self.how.scales[row]
        if schedule == "constant":
            return scale
        if count is None:
            raise ValueError(
                f"sample.guidance_schedule = {schedule} needs a fixed number of latents; this"
                " model's latents end with EOD: choose constant"
            )
        fraction = min(1.0, self.rows[row].run / max(1, count - 1))
        return scheduled_scale(scale, fraction=fraction, schedule=schedule)

    def _noise(self, places: list[int]) -> RowNoise:
        """Keyed by row and by the position that is decoded, never by the batch around it."""
        rows = [self.live[i] for i in places]
        positions = [self.rows[row].position for row in rows]
        index = torch.tensor([rows, positions], device=self.device)
        return self.how.noise.rows(index[0]).at(index[1])

    def _advance(self, text: list[int], ending: set[int], latent: list[int], ids_E: Tensor) -> None:
        """Move every live row on: its position, its run of latents, its mode."""
        for i in latent:
            row = self.rows[self.live[i]]
            row.run += 1
            self._finish_labelled(row)
        for i in ending:
            self.rows[self.live[i]].mode, self.rows[self.live[i]].run = "text", 0
        for i, word in zip(text, ids_E[text].tolist() if text else [], strict=True):
            self.rows[self.live[i]].mode = self._mode_after(word)
        for number in self.live:
            self.rows[number].position += 1

    def _mode_after(self, word: int) -> Mode:
        if self.settings.vocabulary is None or word == LATENT:
            return "latent"
        if word == self.special.end:
            return "done"
        return "latent" if word == self.special.bod else "text"

    def _keep(self, places: list[int], given: Elements) -> Elements:
        """Go on with the rows at these places alone."""
        live = [self.live[i] for i in places]
        staying = set(live)
        twins = [row for row in self.twins if row in staying]
        streams = places + [len(self.live) + self.twins.index(row) for row in twins]
        self.cache.keep(torch.tensor(streams, device=self.device))
        self.live, self.twins = live, twins
        return Elements(live, given.ids_E[places], given.latents_EZ[places])

    def _feed(self, given: Elements) -> None:
        """Give every stream its row's element; twins see words without their meaning."""
        places = [self.live.index(row) for row in self.twins]
        ids_R = torch.cat((given.ids_E, null_ids(given.ids_E[places], self.settings)))
        latents_RZ = torch.cat((given.latents_EZ, given.latents_EZ[places]))
        x_R1D = self.model.embed(ids_R[:, None], latents_RZ[:, None])
        self.hidden_RD = self.backbone.extend(x_R1D, cache=self.cache)[:, -1]


def _runs(ids_BT: Tensor) -> list[int]:
    """How many latents each prompt ends with."""
    tail_BT = (ids_BT == LATENT).flip(1).cumprod(dim=1)
    return tail_BT.sum(dim=1).tolist()
