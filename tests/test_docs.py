"""What documents say about the repository holds: links, anchors, file names, command lines, make targets, the notebook."""

import ast
import importlib
import importlib.util
import itertools
import json
import re
import shlex
import unicodedata
from pathlib import Path

import pytest

from lgrpo import __main__ as cli
from lgrpo.ablate.grid import find_grid
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import field_paths, load_experiment, parse_overrides
from lgrpo.errors import UserError

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BASE = "experiments/demo/latent_grpo.py"
# Names that stand for a file of the reader's, and what is parsed in their place.
STAND_INS = dict.fromkeys(("EXPERIMENT", "experiments/x.py", "experiments/mine.py", "own.py"), BASE)
STAND_INS |= {"my_laws.py:Bag": "tests/bag.py:Bag"} | {path.name: str(path) for path in (ROOT / "lgrpo" / "templates").glob("*.py")}
FOLDERS = ("lgrpo", "experiments", "tests", "docs", "benchmarks", "deploy", ".ci", ".github")


def prose(text):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def notebook():
    return json.loads(NOTEBOOK.read_text())["cells"]


def text_of(page):
    return page.read_text() if page.suffix == ".md" else "\n".join("".join(c["source"]) for c in notebook() if c["cell_type"] == "markdown")


def anchors(page):
    """Ids of a page's headings, as the site makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page.read_text()), re.M):
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def test_links_and_their_anchors_resolve():
    wrong = []
    for page in (*PAGES, NOTEBOOK):
        for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(text_of(page))):
            if target.startswith(("http://", "https://", "mailto:")):
                continue
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                wrong.append(f"{page.relative_to(ROOT)}: {target}")
    assert wrong == []


def test_files_that_are_named_exist():
    named = re.compile(r"`((?:" + "|".join(map(re.escape, FOLDERS)) + r")/[\w./*-]+)(?::[\w.]+)?`")
    wrong = []
    for page in (*PAGES, NOTEBOOK):
        for name in named.findall(text_of(page)):
            made = name.endswith("/") and (ROOT / name).parent.is_dir()  # a folder that a command fills
            if not made and not list(ROOT.glob(name)):
                wrong.append(f"{page.relative_to(ROOT)}: {name}")
    assert wrong == []


def lines(page):
    """Command lines of a page's blocks of code: (page, line)."""
    text, inside = re.sub(r"\\\n\s*", " ", page.read_text()), False
    for line in text.split("\n"):
        if line.startswith("```"):
            inside = not inside
        elif inside or line.startswith("    "):
            for part in line.split(" && "):
                part = re.sub(r"^((nohup|time|sudo|[A-Z_]+=\S*)\s+)*", "", part.strip())
                if re.match(r"(python3? -m [a-z]\S*|lgrpo|make)\b", part):
                    yield page.relative_to(ROOT).as_posix(), part.strip()


LINES = sorted({(page, line) for file in PAGES for page, line in lines(file)})


def words(line):
    """What the shell would pass on, with stand-ins; a folder in place of a bucket, which parsing would ask for."""
    given = itertools.takewhile(lambda word: word not in ("|", "||", "&", ">"), shlex.split(line, comments=True))
    return [STAND_INS.get(word, word).replace("gs://", "runs/").replace("$seed", "0") for word in given]


def parsed(argv, patch):
    """Parses a command line as lgrpo does, without its command's work. Errors: UserError."""
    module = importlib.import_module(f"lgrpo.cli.{argv[0].replace('-', '_')}") if argv[0] in cli._ON_EXPERIMENTS + cli._TOOLS else None
    seen = []
    if module is not None:
        patch.setattr(module, "run", lambda *args: seen.append(args) or 0)
    assert cli.run(argv) == 0
    options, *rest = seen[0]
    if getattr(module, "SETTINGS", False):
        parse_overrides(ExperimentConfig(), rest[0])
    if argv[0] == "ablate":
        find_grid(options.grid, options.experiment)
    experiment = getattr(options, "experiment", None)
    assert experiment is None or load_experiment(experiment)


def known_options(command, line):
    """Of a line of usage, with brackets: that its options exist. Errors: AssertionError."""
    parser = cli.Parser(allow_abbrev=False)
    importlib.import_module(f"lgrpo.cli.{command.replace('-', '_')}").add_options(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    known |= {f"--{path.replace('_', '-')}" for path in field_paths()} if command in cli._ON_EXPERIMENTS else set()
    asked = set(re.findall(r"--[a-z][\w.-]*", line))
    assert asked <= known, asked - known


OURS = [x for x in LINES if re.match(r"(python3? -m )?lgrpo\s", x[1])]


@pytest.mark.parametrize("page", sorted({page for page, _ in OURS}))
def test_command_lines_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = []
    for line in [line for name, line in OURS if name == page]:
        argv = words(re.sub(r"^(python3? -m )?lgrpo", "", line))
        try:
            if re.search(r"\[-|\[N|\.\.\.\]", line):
                known_options(argv[0], line)
            else:
                parsed([word for word in argv if word != "--help"], monkeypatch)
        except (UserError, AssertionError) as error:
            wrong.append(f"{line}: {error}")
    assert wrong == []


def test_a_wrong_command_line_is_caught(monkeypatch):
    monkeypatch.chdir(ROOT)
    for argv in (["train", BASE, "--optim.lrr", "1"], ["train", "experiments/nothing.py"], ["trian", BASE], ["report", "runs"]):
        with pytest.raises(UserError):
            parsed(argv, monkeypatch)
    with pytest.raises(AssertionError):
        known_options("export-hf", "export-hf WORKDIR OUT [--bset]")


def test_targets_and_modules_exist():
    text = (ROOT / "Makefile").read_text()
    targets = {name for names in re.findall(r"^([a-z][\w -]*):", text, re.M) for name in names.split()}
    variables = set(re.findall(r"^([A-Z_]+) [?:]?=|\$\(([A-Z_]+)\)", text, re.M))
    variables = {name for pair in variables for name in pair}
    wrong = []
    for page, line in LINES:
        first, *rest = shlex.split(line, comments=True)
        if first == "make":
            wrong += [f"{page}: {line}" for word in rest if word.partition("=")[0] not in (variables if "=" in word else targets)]
        elif first.startswith("python") and importlib.util.find_spec(rest[1]) is None:
            wrong.append(f"{page}: {line}")
    for page in PAGES:
        for target in re.findall(r"`make ([a-z][\w-]*)", text_of(page)):
            wrong += [] if target in targets else [f"{page.name}: make {target}"]
    assert wrong == []


def test_the_notebook_is_valid_and_its_commands_are_understood(monkeypatch):
    """It is run by `make tutorial`."""
    monkeypatch.chdir(ROOT)
    settings = {}
    asked = []
    for cell in [c for c in notebook() if c["cell_type"] == "code"]:
        assert cell["outputs"] == [] and cell["execution_count"] is None, "saved with outputs"
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                settings[node.targets[0].id] = node.value.value
            if isinstance(node, ast.ImportFrom) and node.module.startswith("lgrpo"):
                assert all(hasattr(importlib.import_module(node.module), alias.name) for alias in node.names)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lgrpo":
                asked.append((node.args[0], not node.keywords))
    assert len(asked) >= 8
    for argument, common in asked:
        parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
        line = "".join(part.value if isinstance(part, ast.Constant) else settings[part.value.id] for part in parts)
        parsed(words(f"{line} {settings['COMMON'] if common else ''}"), monkeypatch)
    assert "tutorial.ipynb" in (ROOT / "mkdocs.yml").read_text()


def test_the_figure_shows_the_numbers_of_the_demo(monkeypatch):
    """docs/demo.svg is what docs/figure.py makes of docs/demo.md: its labels are text."""
    spec = importlib.util.spec_from_file_location("figure", ROOT / "docs" / "figure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows, drawn = module.table(), (ROOT / "docs" / "demo.svg").read_text()
    assert set(rows) == {"explicit SFT", "explicit GRPO", "Latent-SFT", "Latent-GRPO"}
    for name, (value, _, _, length, _) in rows.items():
        assert f"{name} {value:.3f}" in drawn and f"{length:.1f} " in drawn, (
            f"run python docs/figure.py: {name} is not that of docs/demo.md"
        )


def test_the_readme_fits_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90
