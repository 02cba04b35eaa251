"""Every name in a shipped view is one that the platform writes, so that renaming a metric breaks a
test here and not a chart there."""

import ast
import fnmatch
import functools
import re
from pathlib import Path

import pytest

from latentlm_dashboards.view import View
from latentlm_dashboards.view_file import shipped_views
from making_tracked_runs import MULTIMODAL, SPEECH, settings_of

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "platform" / "latentlm_platform", ROOT / "latentlm")
NAMED_ELSEWHERE = re.compile(r"experiment\w*\.py|commands/|benchmarks/")  # read or asked for there
SWEEPS = {"image": "image/sweeps/sigma_cfg.yaml", "codes": "image/codes.yaml"}
SCHEMAS = {"speech": "speech/tts_15hz.yaml", "multimodal": "multimodal/latentlm.yaml"}
AWAITED = {"speech": SPEECH, "multimodal": MULTIMODAL}


@functools.cache
def written() -> list[str]:
    """Every text in the sources that may be a name; what an f-string leaves open is a `*`."""
    names = []
    for top in SOURCES:
        for path in top.rglob("*.py"):
            if NAMED_ELSEWHERE.search(str(path.relative_to(top))):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "*" for v in node.values)
                    names.append("".join(map(str, parts)))
    fits = re.compile(r"[a-z][\w./]*|[a-z][\w./]{3,}\*[\w./*]*")  # four letters before a `*`
    return sorted({name for name in names if fits.fullmatch(name)})


def is_written(name: str) -> bool:
    bare = re.sub(r"_(low|high)$", "", name)
    return any(fnmatch.fnmatchcase(bare, pattern) for pattern in written())


@functools.cache
def evaluated() -> set[str]:
    """The parameters that an evaluation has of its own: the dict that `log_parameters` is given."""
    calls = (
        node
        for node in ast.walk(ast.parse((SOURCES[0] / "stages.py").read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "log_parameters"
    )
    given = [call.args[0] for call in calls if isinstance(call.args[0], ast.Dict)]
    return {str(ast.literal_eval(key)) for one in given for key in one.keys if key}


def settings(view: View) -> set[str]:
    """The parameters that runs of the view's track have."""
    paths = [SCHEMAS[view.awaits]] if view.awaits else SWEEPS.values()
    own = {"variant", "codec.variance.sigma", "model.kv_heads"}  # of another variance or model
    return evaluated() | own | {name for path in paths for name in settings_of(path)}


@pytest.mark.parametrize("view", shipped_views(), ids=lambda view: view.name)
def test_what_a_view_names_is_written(view: View) -> None:
    awaited = AWAITED[view.awaits] if view.awaits else {}
    searched = re.findall(r'(params|tags)\."([^"]+)"', view.runs)
    named = [(field.group, field.name) for field in view.fields()] + searched
    for group, name in named:
        if group == "params":
            assert name in settings(view), f"{view.name}: no run has the parameter {name}"
        elif group == "metrics" and not name.startswith("system/"):
            assert name in awaited or is_written(name), f"{view.name}: nothing writes {name}"
        elif group == "tags":
            assert is_written(name), f"{view.name}: nothing writes the tag {name}"
    pictures = [word for c in view.charts if c.kind == "images" for word in c.words]
    assert all(is_written(key) for key in pictures)


def test_a_name_that_nothing_writes_is_seen() -> None:
    assert is_written("frechet_efficientnet_lite0_above_reconstruction")
    assert is_written("reconstruction_psnr_sigma_0.25")
    assert is_written("items_per_s")
    assert not is_written("pictures_per_s")
    assert not is_written("generated_correctness")
