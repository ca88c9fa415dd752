"""The rule of DESIGN section 3, read from the source: imports go down only, the method does no I/O, no other framework comes in."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Lower layers first. What is not listed belongs to no layer: it may use anything but what FORBIDDEN says.
LAYERS = [
    {"types", "keys", "errors", "bounds"},
    {"laws"},
    {"config"},
    {"sharding"},
    {"models"},
    {"latent"},
    {"algos"},
    {"train"},
    {"cli"},
    {"__main__"},
]
# A law is an object in the config, so it and its arithmetic lie below: modules of lgrpo/latent that count as a layer of their own.
LAWS = {"law", "laws", "noise", "mixture", "draw"}
ROOM_FILES = 8  # files in the package's root
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# Beside the layers: below the loops, never above them.
FORBIDDEN = {name: {"train", "cli", "__main__"} for name in ("ablate", "rewards", "data", "evaluation", "report", "runs")}
PURE = {"laws", "latent", "algos"}
IMPURE = {
    "os",
    "pathlib",
    "io",
    "logging",
    "subprocess",
    "lgrpo.runs.checkpoint",
    "lgrpo.runs.metrics",
    "lgrpo.data",
    "lgrpo.runs.multihost",
}


def imports(path, root=ROOT):
    """(line, dotted name) of every import in a file, those inside functions and type-checking blocks included."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(x for x in (base, node.module) if x)
            # `from lgrpo import train` imports lgrpo.train; `from lgrpo.types import Rollout` names an attribute, which does no harm here.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def part(name):
    """lgrpo.train.rl -> train, lgrpo.latent.law -> laws; None for what is not lgrpo's."""
    pieces = name.split(".")
    if pieces[0] != "lgrpo" or len(pieces) < 2:
        return None
    return "laws" if pieces[1] == "latent" and len(pieces) > 2 and pieces[2] in LAWS else pieces[1]


def under(name, prefixes):
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def violations(root=ROOT):
    found = []
    for path in sorted((root / "lgrpo").rglob("*.py")):
        own = part(".".join(path.relative_to(root).with_suffix("").parts))
        for line, name in imports(path, root):
            target = part(name)
            bad = None
            if under(name, {"torch", "tensorflow"}):
                bad = "torch and tensorflow have no place in lgrpo"
            elif under(name, {"matplotlib"}) and own != "report":
                bad = "only lgrpo/report draws"
            elif under(name, {"experiments", "tests"}):
                bad = "nothing imports experiments or tests"
            elif target in FORBIDDEN.get(own, ()):
                bad = f"{own} lies beside train, not above it"
            elif own in RANK and RANK.get(target, -1) > RANK[own]:
                bad = f"{target} lies above {own}"
            elif own in PURE and under(name, IMPURE):
                bad = f"{own} does no I/O"
            if bad:
                found.append(f"{path.relative_to(root)}:{line}: imports {name}: {bad}")
    return found


def test_imports_go_down_only():
    assert violations() == []


@pytest.mark.parametrize(
    ("file", "text", "caught"),
    [
        ("latent/a.py", "from lgrpo.train import steps", True),
        ("latent/a.py", "from lgrpo import train", True),
        ("latent/a.py", "from ..train.steps.rl import f", True),
        ("latent/a.py", "from .mixture import f", False),
        ("latent/a.py", "def f():\n    import os.path", True),
        ("latent/a.py", "from lgrpo.runs.metrics import METRICS", True),
        ("latent/a.py", "from lgrpo.models.decoder import prefill", False),
        ("algos/a.py", "import logging", True),
        ("models/a.py", "from lgrpo.latent.replay import f", True),
        ("config/a.py", "from lgrpo.latent.laws.gumbel import f", False),
        ("config/a.py", "from lgrpo.latent.logprobs import f", True),
        ("latent/laws/a.py", "from lgrpo.config import f", True),
        ("sharding.py", "from lgrpo.models import spec", True),
        ("config/a.py", "import lgrpo.sharding", True),
        ("data/a.py", "from lgrpo.train.rl import run", True),
        ("runs/checkpoint.py", "from lgrpo.train.steps.rl import f", True),
        ("train/a.py", "from lgrpo.runs.checkpoint import Checkpoints", False),
        ("train/a.py", "from experiments import x", True),
        ("rewards/a.py", "import tensorflow_datasets", False),
        ("rewards/a.py", "import tensorflow.io", True),
        ("rewards/a.py", "import torch", True),
        ("report/a.py", "from lgrpo.train.steps.rl import group", True),
        ("report/a.py", "from matplotlib.figure import Figure", False),
        ("evaluation/a.py", "import matplotlib", True),
    ],
)
def test_the_check_itself(tmp_path, file, text, caught):
    path = tmp_path / "lgrpo" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    assert bool(violations(tmp_path)) == caught


def test_files_and_functions_stay_small():
    """DESIGN section 1: files under about 400 lines, functions under about 60."""
    long = []
    for path in sorted((ROOT / "lgrpo").rglob("*.py")):
        text = path.read_text()
        if len(text.splitlines()) > 420:
            long.append(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 66:
                long.append(f"{path.relative_to(ROOT)}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert long == []


def test_the_root_holds_only_what_every_room_uses():
    assert len([path for path in (ROOT / "lgrpo").iterdir() if path.is_file()]) <= ROOM_FILES


def circles(root=ROOT):
    """Groups of modules that reach each other through imports, those inside functions included."""
    files = {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in (root / "lgrpo").rglob("*.py")}
    graph = {}
    for module, path in files.items():
        found = set()
        for _, name in imports(path, root):
            pieces = name.split(".")
            hit = next((".".join(pieces[:n]) for n in range(len(pieces), 1, -1) if ".".join(pieces[:n]) in files), None)
            if hit and hit != module:
                found.add(hit)
        graph[module] = found

    def reach(start):
        seen, todo = set(), [start]
        while todo:
            for after in graph[todo.pop()] - seen:
                seen.add(after)
                todo.append(after)
        return seen

    reached = {module: reach(module) for module in graph}
    return sorted(module for module in graph if module in reached[module])


def test_no_module_imports_itself_through_others():
    assert circles() == []
