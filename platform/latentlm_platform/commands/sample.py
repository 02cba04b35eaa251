"""Generate from a finished run, on this machine, without a cluster.

    latentlm sample quickstart --class 3 --class Bag --count 8 --cfg-scale 2 --out bags.png
    latentlm sample captions --image cat.png --prompt "What is it?"

A model of classes draws a row of pictures for each --class (a number, a name, or several with
commas), without any for all classes. A model with text answers one prompt, made of the parts in the
order in which they are given: text is printed, pictures and sounds are written beside.

Row i of a class is the same picture at every CFG scale as far as its noise goes: what differs is
the guidance.
"""

import argparse
from pathlib import Path
from typing import Any

from latentlm_platform.commands import Result


class AddPart(argparse.Action):
    """Collects (kind, text) of parts in `parts`, in their order among all options."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """One part was given."""
        kind = self.option_strings[0].removeprefix("--")
        namespace.parts = (*namespace.parts, (kind, values))


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="key, start of a key, name, or export folder")
    for option, metavar, what in (
        ("--class", "CLASS", "a class by number or name; a name comes first; default: all"),
        ("--prompt", "TEXT", "text of the prompt"),
        ("--image", "PATH", "an image file as a part of the prompt"),
        ("--sound", "PATH", "a WAV file as a part of the prompt"),
    ):
        parser.add_argument(
            option, dest="parts", default=(), action=AddPart, metavar=metavar, help=what
        )
    parser.add_argument("--count", type=int, help="images a class (default 8), or answers (1)")
    parser.add_argument("--cfg-scale", type=float, help="guidance; default: the experiment's")
    parser.add_argument("--steps", type=int, help="solver steps; default: the experiment's")
    parser.add_argument(
        "--length", type=int, default=1024, help="words and latents of an answer (default 1024)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    parser.add_argument("--out", default="samples.png", help="picture to write; sounds beside it")


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.evaluation.sampling import SampleRequest, sample_parts

    sampled = sample_parts(
        SampleRequest(
            run=arguments.run,
            parts=arguments.parts,
            count=arguments.count,
            cfg_scale=arguments.cfg_scale,
            steps=arguments.steps,
            length=arguments.length,
            seed=arguments.seed,
        )
    )
    report = dict(sampled.report)
    for text in (text for answer in sampled.texts for text in answer):
        print(text)
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if sampled.picture is not None:
        out.write_bytes(sampled.picture)
        rows = ", one row a class" if "classes" in report else ""
        print(f"{report['images']} images{rows}: {out}")
        report["path"] = str(out)
    for number, sound in enumerate(sampled.sounds, start=1):
        path = out.with_name(f"{out.stem}-{number}.wav")
        path.write_bytes(sound)
        print(f"sound {number}: {path}")
    return Result(report)
