"""The pictures and sounds of a report: strips of samples, σ × CFG matrices, galleries, players.

Every picture is embedded once, where it first stands; the page's script copies it to the other
places. A picture of tiles can show a strip, a few tiles or all of it.
"""

from collections.abc import Sequence

from latentlm_dashboards.markup import (
    Markup,
    element,
    folded,
    joined,
    paragraph,
    section,
    text,
)
from latentlm_dashboards.measures import shown_number
from latentlm_dashboards.points import VARIANT, Group, Level, Points
from latentlm_dashboards.report_data import ReportData, Shot, Spoken
from latentlm_dashboards.sound import spectrogram

MATRIX_LEVELS = range(2, 9)
MATRIX_ACROSS, MATRIX_ROWS = 4, 2
STRIP_ROWS = 2


class Pictures:
    """Writes pictures, each with its data the first time alone."""

    def __init__(self, data: ReportData, base_url: str | None) -> None:
        self.data, self.base_url = data, base_url
        self.places: dict[int, str] = {}
        self.by_run = {shot.child.run_id: shot for shot in data.shots if shot.key == "samples"}

    def shot_of(
        self, group: Group, *, rows: int, name: str | None = None, best: bool = False
    ) -> Markup:
        """The samples of the group's first seed with the group's value; nothing without them."""
        shot = self.by_run.get(group.points[0].child.run_id)
        if shot is None:
            return Markup()
        estimate = self.data.points.estimate(group)
        value = shown_number(estimate.mean if estimate else None)
        return self.figure(
            shot, name or self.data.points.named(group), value=value, rows=rows, best=best
        )

    def figure(
        self,
        shot: Shot,
        name: str,
        *,
        value: str = "",
        rows: int = STRIP_ROWS,
        across: int | None = None,
        best: bool = False,
        bare: bool = False,
    ) -> Markup:
        """A picture that opens larger, its name and value below."""
        small = shot.thumbnail
        told = element("b", value if bare else name), f" {value}" if value and not bare else ""
        caption = element("figcaption", *told, "" if bare else self.original(shot))
        picture = self._image(shot, f"{shot.key} of {name}")
        if small.tiling == (1, 1):
            style = f"--cols:1;--across:1;--show:1;--ratio:{small.width}/{small.height}"
            frame = element("span", picture, class_="frame whole", style=style)
        else:
            shown = min(rows, small.tiling.rows)
            wide = min(across or small.tiling.columns, small.tiling.columns)
            style = f"--cols:{small.tiling.columns};--across:{wide};--show:{shown}"
            frame = element("span", picture, class_="frame", style=style)
        button = element("button", frame, type="button", aria_label=f"Enlarge {shot.key} of {name}")
        return element("figure", button, caption, class_="shot best" if best else "shot")

    def original(self, shot: Shot) -> Markup:
        """A link to the picture in MLflow, where its address is known."""
        if not self.base_url:
            return Markup()
        place = f"#/experiments/{self.data.study.experiment_id}/runs/{shot.child.run_id}/artifacts"
        url = f"{self.base_url.rstrip('/')}/{place}"
        return joined((" ", element("a", "original", href=url, target="_blank", rel="noopener")))

    def _image(self, shot: Shot, alt: str) -> Markup:
        small = shot.thumbnail
        size = f'width="{small.width}" height="{small.height}"'
        described = f'alt="{text(alt)}"'
        if id(shot) in self.places:
            same = self.places[id(shot)]
            return Markup(f'<img data-same="{same}" {described} {size} decoding="async">')
        place = self.places[id(shot)] = f"picture-{len(self.places)}"
        return Markup(
            f'<img id="{place}" src="{small.url()}" {described} {size} loading="lazy"'
            ' decoding="async">'
        )


def matrix_section(data: ReportData, pictures: Pictures) -> Markup:
    """Two factors as rows and columns of pictures; one matrix for each variant."""
    points = data.points
    axes = [
        i
        for i, factor in enumerate(points.factors)
        if factor.paths != (VARIANT,) and len(factor.levels) in MATRIX_LEVELS
    ][:2]
    best = points.best()
    if len(axes) < 2 or best is None:
        return Markup()
    variant = next((i for i, one in enumerate(points.factors) if one.paths == (VARIANT,)), None)
    held = [i for i in range(len(points.factors)) if i not in (*axes, variant)]
    chosen = [g for g in points.groups if all(g.levels[i] == best.levels[i] for i in held)]
    parts = []
    for level in points.factors[variant].levels if variant is not None else (None,):
        groups = [g for g in chosen if level is None or g.levels[variant or 0] == level]
        made = _matrix(points, groups, axes, pictures)
        if made:
            parts.append(element("h3", level.label) if level else Markup())
            parts.append(made)
    if not parts:
        return Markup()
    rows, columns = (points.factors[i].name for i in axes)
    told = ", ".join(points.factors[i].told(best.levels[i]) for i in held)
    note = f"The same {MATRIX_ACROSS * MATRIX_ROWS} seeds in every cell; below it {points.metric}."
    if told:
        note += f" With {told}."
    return section("matrix", f"{rows} × {columns}", paragraph(note, "note"), *parts)


def _matrix(
    points: Points, groups: Sequence[Group], axes: Sequence[int], pictures: Pictures
) -> Markup:
    across, down = axes[1], axes[0]
    by_place = {(g.levels[down], g.levels[across]): g for g in groups}
    best = points.best()

    def cell(row: Level, column: Level) -> Markup:
        group = by_place.get((row, column))
        shot = pictures.by_run.get(group.points[0].child.run_id) if group else None
        if group is None or shot is None:
            return element("td", "–")
        estimate = points.estimate(group)
        value = shown_number(estimate.mean if estimate else None)
        name = f"{points.factors[down].told(row)}, {points.factors[across].told(column)}"
        figure = pictures.figure(
            shot,
            name,
            value=value,
            rows=MATRIX_ROWS,
            across=MATRIX_ACROSS,
            best=group is best,
            bare=True,
        )
        return element("td", figure)

    if not any(pictures.by_run.get(g.points[0].child.run_id) for g in groups):
        return Markup()
    columns = points.factors[across].levels
    head = element(
        "tr",
        element("th", points.factors[down].name),
        *(element("th", points.factors[across].told(level)) for level in columns),
    )
    body = [
        element("tr", element("th", row.label), *(cell(row, column) for column in columns))
        for row in points.factors[down].levels
        if any((row, column) in by_place for column in columns)
    ]
    inside = element("table", element("thead", head), element("tbody", *body), class_="matrix")
    label = f"{points.factors[down].name} × {points.factors[across].name}"
    return element("div", inside, class_="scroll", tabindex="0", role="region", aria_label=label)


def gallery_section(data: ReportData, pictures: Pictures) -> Markup:
    """All evaluations, best first, at the same seeds; a picker shows one tile of each."""
    points = data.points
    best = points.best()
    shots = []
    tiles = 0
    ranked = points.ranked()
    for group in (*ranked, *(g for g in points.groups if g not in ranked)):
        for point in group.points:
            shot = pictures.by_run.get(point.child.run_id)
            if shot is None:
                continue
            tiles = max(
                tiles, shot.thumbnail.tiling.columns if shot.thumbnail.tiling != (1, 1) else 0
            )
            value = point.metrics.get(points.metric or "")
            name = data.named(point.child)
            shots.append(
                pictures.figure(shot, name, value=shown_number(value), rows=1, best=group is best)
            )
    if not shots:
        return Markup()
    note = (
        f"{len(shots)} evaluations, best first; the same place is the same seed and class in each."
        " Click a picture, or press Enter on it, to see all that is kept of it."
    )
    options = [element("option", "all", value="all")]
    for index in range(tiles):
        told = data.tiles[index] if index < len(data.tiles) else "same seed"
        options.append(element("option", f"tile {index + 1}: {told}", value=index))
    select = element("select", *options, data_gallery="gallery-shots", disabled=True)
    pick = element("label", "Show ", select, class_="pick") if tiles else Markup()
    inside = element("div", *shots, class_="shots", id="gallery-shots")
    return section("gallery", "Samples of every trial", paragraph(note, "note"), pick, inside)


def process_section(data: ReportData, pictures: Pictures) -> Markup:
    """How pictures come out of noise, what the codec keeps, samples during training."""
    parts: list[Markup] = []
    traced = [shot for shot in data.shots if shot.key == "trajectory"]
    if traced:
        parts.append(element("h3", "From noise to image"))
        note = "One row an image, one column a state of the solver, noise at the left."
        parts.append(paragraph(note, "note"))
        made = (pictures.figure(s, data.named(s.child), rows=s.thumbnail.of.rows) for s in traced)
        parts.append(element("div", *made, class_="shots"))
    rebuilt = [shot for shot in data.shots if shot.key == "reconstructions"]
    if rebuilt:
        parts.append(element("h3", "What the codec keeps"))
        parts.append(
            paragraph("Images and their reconstructions, as the codec logged them.", "note")
        )
        made = (pictures.figure(shot, data.named(shot.child), rows=4) for shot in rebuilt)
        parts.append(element("div", *made, class_="shots"))
    training = [shot for shot in data.shots if shot.child.kind == "model"]
    if training:
        training.sort(key=lambda shot: (data.named(shot.child), shot.step))
        made = (
            pictures.figure(s, data.named(s.child), value=f"step {s.step:,}", rows=1)
            for s in training
        )
        inside = element("div", *made, class_="shots")
        parts.append(folded(f"Samples during training ({len(training)} pictures)", inside))
    return section("process", "How the pictures come about", *parts) if parts else Markup()


def sound_section(data: ReportData) -> Markup:
    """Players side by side: the same text, prompt and seed in a row, with spectrograms."""
    if not data.spoken:
        return Markup()
    by_name: dict[str, list[Spoken]] = {}
    for one in data.spoken:
        by_name.setdefault(one.name, []).append(one)
    parts = []
    for name, spoken in by_name.items():
        said = next((one.text for one in spoken if one.text), "")
        parts.append(element("h3", f"{name}: “{said}”" if said else name))
        parts.append(element("div", *(_player(data, one) for one in spoken), class_="sounds"))
    note = (
        "The same text, prompt and seed in each block. Spectrograms: time to the right, frequency"
    )
    note += " upwards to half the sample rate, 80 dB."
    return section("sound", "Samples to listen to", paragraph(note, "note"), *parts)


def _player(data: ReportData, one: Spoken) -> Markup:
    name = data.named(one.child)
    alt = f"Spectrogram of {one.name}, {name}"
    picture = Markup(_spectrogram_image(one, alt))
    audio = element(
        "audio",
        controls=True,
        preload="metadata",
        src=one.sound.url(),
        aria_label=f"{one.name}, {name}",
    )
    told = f" {one.sound.seconds:.1f} s, {one.sound.rate_hz / 1000:g} kHz"
    caption = element("figcaption", element("b", name), told)
    return element("figure", picture, audio, caption, class_="card")


def _spectrogram_image(one: Spoken, alt: str) -> str:
    import base64

    packed = base64.b64encode(spectrogram(one.sound)).decode()
    described = f'alt="{text(alt)}"'
    return (
        f'<img src="data:image/webp;base64,{packed}" {described} loading="lazy" decoding="async">'
    )
