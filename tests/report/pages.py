"""Workdirs as runs leave them, written by the project's own writers, and a reader of pages that knows no project code."""

import csv
import json
from html.parser import HTMLParser

import numpy as np
from support import tiny

from lgrpo.config import LoggingConfig
from lgrpo.runs.checkpoint import write_config
from lgrpo.runs.metrics import MetricsWriter

VOID = {"meta", "link", "br", "img", "hr", "input", "line", "use", "path", "rect"}


def interval(value, spread=0.05):
    return {"value": value, "low": value - spread, "high": value + spread}


def about(**changes):
    """What an eval.json says it is of."""
    known = {"checkpoint": "w", "which": "newest", "step": 70, "weights": "d", "data": "word_problems/mini", "split": "test", "records": 10}
    known |= {"left_out": 0, "problem_set": "p", "thinks_in": "latents", "noise_scale": 1.0, "samples": 4, "answers": "T 1"}
    known |= {"answer_budget": 6, "max_new_tokens": 8, "grader": "auto", "template": "plain", "few_shot": "", "instruction": None}
    return known | changes


def evaluation(at, chain=3.5, problems=10, **changes):
    """An eval.json with four samples, a sweep, interventions, arms and a curve."""

    one = {"pass@1": interval(at), "chain_tokens": interval(chain), "answer_tokens": interval(3.0), "invalid_frac": interval(0.01)}
    many = one | {f"pass@{k}": interval(at + 0.02 * k) for k in (2, 3, 4)} | {f"maj@{k}": interval(at + 0.01 * k) for k in (2, 3, 4)}

    def effects(*names):
        return {name: {part: interval(at - 0.1 * i) for part in ("accuracy", "change", "chain_tokens")} for i, name in enumerate(names)}

    return {
        "about": about(**changes),
        "problems": problems,
        "noise_free": one,
        "sampled": many,
        "sweep": {"0.5": one, "1.5": many},
        "counterfactual": effects("none", "zeroed"),
        "arms": effects("free", "forced", "floor"),
        "curve": effects("10", "2", "0"),
        "seconds": 1.0,
    }


def write_run(folder, *, seed=0, steps=70, name="run", odd=False, metrics=None, **fields):
    """An RL run of `steps` logged steps. odd: one value is not finite. Returns the values that were written, {metric: [value by step]}."""
    rng = np.random.default_rng(seed)
    cfg = tiny(name=name, seed=seed, train__num_steps=steps, **fields)
    folder.mkdir(parents=True)
    write_config(folder, cfg)
    values = {
        "reward/mean": rng.random(steps).tolist(),
        "rollout/latent_share": (0.4 + 0.1 * rng.random(steps)).tolist(),
        "rollout/nan_frac": [0.0] * steps,
        "time/rollout_s": (1 + rng.random(steps)).tolist(),
        "time/train_s": (2 + rng.random(steps)).tolist(),
        "time/grade_s": (0.1 * rng.random(steps)).tolist(),
        "time/data_s": (0.01 * rng.random(steps)).tolist(),
        "time/compile_s": [3.0 + seed] + [0.0] * (steps - 1),
        "time/step_s": (5 + rng.random(steps)).tolist(),
        **(metrics or {}),
    }
    if odd:
        values["reward/mean"][3] = float("nan")
    with MetricsWriter(folder, LoggingConfig(tensorboard=False)) as writer:
        for step in range(steps):
            writer.write(step + 1, {metric: column[step] for metric, column in values.items()})
    (folder / "eval").mkdir()
    (folder / "eval" / "eval.json").write_text(json.dumps(evaluation(0.5 + 0.1 * seed, step=steps)))
    return values


class Page(HTMLParser):
    """Checks while it reads: every tag is closed in its order, ids are unique. Collects what tests ask for."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.tags, self.links, self.problems = [], set(), [], [], []
        self.figures, self.texts, self.data = {}, [], ""
        self.tables = []  # of rows of cells, the header first
        self._figure = self._row = self._cell = None
        self.feed(text)
        self.close()
        if self.open:
            self.problems.append(f"never closed: {self.open}")

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append((tag, named))
        if len(named) != len(attrs):
            self.problems.append(f"{tag}: attribute given twice at {self.getpos()}")
        if "id" in named:
            if named["id"] in self.ids:
                self.problems.append(f"id {named['id']} twice")
            self.ids.add(named["id"])
        for name in ("href", "src", "xlink:href", "action", "data"):
            if name in named:
                self.links.append(named[name])
        for value in (value for name, value in attrs if name in ("aria-labelledby", "aria-describedby")):
            self.links.append(f"#{value}")
        if tag not in VOID:
            self.open.append(tag)
        if tag == "figure":
            self._figure = self.figures.setdefault(named["id"], {"header": [], "rows": []})
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self._row = []
        elif tag in ("td", "th"):
            self._cell = {"text": "", "values": [], "header": tag == "th"}
        elif tag == "data" and self._cell is not None:
            self._cell["values"].append(named["value"])

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> at {self.getpos()} closes {self.open[-1:]}")
            return
        self.open.pop()
        if tag in ("td", "th"):
            self._row.append(self._cell)
            self._cell = None
        elif tag == "tr":
            self.tables[-1].append(self._row)
        if tag == "tr" and self._figure is not None:
            head = all(cell["header"] for cell in self._row)
            self._figure["header" if head else "rows"].append(self._row)
        elif tag == "figure":
            self._figure = None

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            self.data += text
        elif self.open and self.open[-1] != "style":
            self.texts.append(text)
        if self._cell is not None:
            self._cell["text"] += text


def table(page, figure):
    """Rows of the table below a figure: texts, or lists of the exact numbers in a cell."""
    return [[[float(v) for v in cell["values"]] or cell["text"].strip() for cell in row] for row in page.figures[figure]["rows"]]


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
