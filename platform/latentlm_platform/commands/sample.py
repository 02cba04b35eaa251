"""Generate images from a finished run, on this machine, without a cluster.

    latentlm sample quickstart --classes 3,5 --count 8 --cfg-scale 2 --out bags.png

Row i of a class is the same picture at every CFG scale as far as its noise goes: what differs is
the guidance.
"""

import argparse
from pathlib import Path

from latentlm_platform.commands import Result


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="key, start of a key, name, or export folder")
    parser.add_argument("--classes", help="class numbers, such as 0,3,7; default: all")
    parser.add_argument("--count", type=int, default=8, help="images a class (default 8)")
    parser.add_argument("--cfg-scale", type=float, help="guidance; default: the experiment's")
    parser.add_argument("--steps", type=int, help="solver steps; default: the experiment's")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    parser.add_argument("--out", default="samples.png", help="picture to write")


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.evaluation.sampling import SampleRequest, sample_images

    request = SampleRequest(
        run=arguments.run,
        classes=arguments.classes,
        count=arguments.count,
        cfg_scale=arguments.cfg_scale,
        steps=arguments.steps,
        seed=arguments.seed,
    )
    picture, report = sample_images(request)
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(picture)
    print(f"{report['images']} images, one row a class: {out}")
    return Result(report | {"path": str(out)})
