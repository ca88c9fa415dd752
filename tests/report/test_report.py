"""The report: its numbers are those of the files, its page is valid and asks for nothing, and no text of a run becomes markup."""

import json
import math
import re
import xml.etree.ElementTree

import browser
import numpy as np
import pytest
from pages import Page, evaluation, read_csv, table, write_run

from lgrpo.__main__ import run as command
from lgrpo.errors import UserError
from lgrpo.report import figures, plots
from lgrpo.report.ablation import read_ablation
from lgrpo.report.build import write_report
from lgrpo.report.runs import find_runs, group_runs
from lgrpo.report.series import Band, constant, smooth, thin
from lgrpo.report.text import visible
from lgrpo.runs.metrics import METRICS, read_metrics

EVIL = '</script><script>alert(1)</script><img src="http://evil.test/x" onerror=alert(2)>&amp;"\'$x$\x1b'

ABLATION = [
    {"cell": "base", "metrics": {"pass@1": {"value": 0.5, "low": 0.4, "high": 0.6}}, "seeds": 3},
    {
        "cell": EVIL,
        "metrics": {"pass@1": {"value": 0.4, "low": 0.3, "high": 0.5, "difference": {"value": -0.1, "low": -0.2, "high": -0.05}}},
        "seeds": 3,
    },
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds of one experiment, a changed one with a hostile name, a supervised one, and an ablation's table."""
    root = tmp_path_factory.mktemp("runs")
    written = {
        "seed0": write_run(root / "seed0" / "base", seed=0, name="base"),
        "seed1": write_run(root / "seed1" / "base", seed=1, name="base", odd=True),
        "evil": write_run(root / "evil", name=EVIL, steps=5, rollout__latent__law__one_sided=False),
    }
    sft = {"sft/loss": [3.0, 2.0, 1.0], "grad/norm": [1.0, 2.0, 3.0]}
    (root / "sft").mkdir()
    (root / "sft" / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i + 1} | {k: v[i] for k, v in sft.items()}) + "\n" for i in range(3))
    )
    (root / "ablation.json").write_text(json.dumps(ABLATION))
    return root, written


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report.html"
    assert command(["report", str(folder[0]), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text())


def test_page_is_valid_and_self_contained(page, report):
    """Balanced tags, unique ids, links only into the page itself, no script that runs, nothing to fetch."""
    assert page.problems == []
    inside = [link for link in page.links if link.startswith("#")]
    assert {link[1:] for link in inside} <= page.ids
    assert set(page.links) - set(inside) == {"data:,"}
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert [s["type"] for s in scripts] == ["application/json"]
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert not {tag for tag, _ in page.tags} & {"img", "iframe", "object", "embed", "form", "base"}
    css = re.findall(r"<style>(.*?)</style>", report.read_text(), re.S)
    assert len(css) == 1 and "url(" not in css[0] and "@import" not in css[0] and "prefers-color-scheme: dark" in css[0]
    html = [attrs for tag, attrs in page.tags if tag == "html"]
    assert html[0]["lang"] == "en"
    assert [attrs["content"] for tag, attrs in page.tags if tag == "meta" and attrs.get("name") == "viewport"]


def test_every_figure_has_words_a_table_and_files(page, report):
    assert len(page.figures) > 12
    svgs = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert [s["aria-labelledby"] for s in svgs] == [f"{key}-alt" for key in page.figures]
    folder = report.parent / "report_figures"
    for key, figure in page.figures.items():
        assert figure["header"] and figure["rows"]
        assert (folder / f"{key}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{key}.svg").read_text().startswith("<?xml")
        assert len(read_csv(folder / f"{key}.csv")) >= len(figure["rows"])


def test_colours_follow_the_theme(report):
    """No colour of a figure is fixed: each is a variable that both themes define."""
    svgs = re.findall(r"<svg[^>]*role=\"img\".*?</svg>", report.read_text(), re.S)
    assert svgs
    for svg in svgs:
        assert set(re.findall(r"#[0-9a-fA-F]{6}\b", svg)) <= {"#000000"}, svg[:200]
        assert "#000000" not in re.sub(r"<path[^>]*clip[^>]*>", "", svg)
    used = set(re.findall(r"var\(--(\w+)\)", "".join(svgs)))
    for block in re.findall(r":root \{(.*?)\}", report.read_text(), re.S):
        assert used <= set(re.findall(r"--(\w+):", block))


def test_tables_and_data_equal_the_metrics_file(page, folder, report):
    """Means and extremes over seeds of every logged point, from the files by NumPy; the values of single runs exactly."""
    root, _ = folder
    logged = {name: read_metrics(root / place) for name, place in {"a": "seed0/base", "b": "seed1/base"}.items()}
    for metric in ("reward/mean", "rollout/latent_share"):
        key = "rl-" + metric.replace("/", "-").replace("_", "-")
        by_step = {}
        for rows in logged.values():
            for row in rows:
                if row[metric] is not None:
                    by_step.setdefault(row["step"], []).append(row[metric])
        every = {int(r["step"]): r for r in read_csv(report.parent / "report_figures" / f"{key}.csv") if r["run"] == "base"}
        assert sorted(every) == sorted(by_step)
        for step, values in by_step.items():
            assert math.isclose(float(every[step][metric]), np.mean(values), rel_tol=1e-12)
        shown = [row for row in table(page, key) if row[0] == "base"]
        assert shown[0][1] == [1.0] and shown[-1][1] == [70.0]
        for _, (step,), numbers, (seeds,) in shown:
            values = by_step[step]
            assert seeds == len(values)
            wanted = [np.mean(values), min(values), max(values)] if len(values) > 1 else values
            np.testing.assert_allclose(numbers, wanted, rtol=1e-12)
    data = json.loads(page.data)
    runs = {run["folder"].split("/", 1)[1]: run for group in data["groups"] for run in group["runs"]}
    for name, place in {"a": "seed0/base", "b": "seed1/base"}.items():
        for metric, values in runs[place]["metrics"].items():
            assert values == [row[metric] for row in logged[name]]
        assert runs[place]["steps"] == [row["step"] for row in logged[name]]


def test_data_stays_small(folder, tmp_path, monkeypatch):
    """Beyond the limit logged values are not repeated in the page; what is drawn still is in its tables."""
    monkeypatch.setattr("lgrpo.report.build._MOST_VALUES", 100)
    write_run(tmp_path / "a", steps=30)
    page = Page(write_report([tmp_path], tmp_path / "r.html").read_text())
    assert json.loads(page.data)["groups"][0]["runs"][0]["metrics"] is None
    assert len(table(page, "rl-reward-mean")) == 13


def test_a_value_that_is_not_finite_is_a_gap(page):
    """Seed 1 logged NaN at step 4: only seed 0 counts there, and the page says so by null."""
    data = json.loads(page.data)
    values = [run["metrics"]["reward/mean"][3] for group in data["groups"] if group["label"] == "base" for run in group["runs"]]
    assert values[1] is None and isinstance(values[0], float)


def test_evaluation_numbers(page):
    """pass@k of two seeds: their mean, with the lower and the higher seed; of one run its own interval."""
    rows = {(row[0], row[1][0]): row[2] for row in table(page, "pass-at-k")}
    for k in (1, 4):
        first, second = (evaluation(at)["sampled"][f"pass@{k}"]["value"] for at in (0.5, 0.6))
        np.testing.assert_allclose(rows["base", k], [(first + second) / 2, first, second])
    np.testing.assert_allclose(rows[visible(EVIL), 1], [0.5, 0.45, 0.55])
    scatter = table(page, "length-accuracy")
    assert [row[0] for row in scatter] == [visible(EVIL), "base", "base"]
    assert {row[1] for row in scatter} == {"latents"}


def test_timing_is_the_median_without_the_first_step(page, folder):
    _, written = folder
    rows = {row[0]: [x[0] for x in row[1:]] for row in table(page, "timing")}
    for at, metric in enumerate(("time/rollout_s", "time/train_s", "time/grade_s", "time/data_s")):
        wanted = np.median([x for seed in ("seed0", "seed1") for x in written[seed][metric][1:]])
        assert math.isclose(rows["base"][at], wanted)
    assert math.isclose(rows["base"][4], rows["base"][5] - sum(rows["base"][:4]))
    assert math.isclose(rows["base"][6], np.median([sum(written[seed]["time/compile_s"]) for seed in ("seed0", "seed1")]))


def test_texts_of_runs_stay_texts(page, report):
    """A hostile name appears as text wherever names appear, and nowhere as markup."""
    assert any(visible(EVIL) in text for text in page.texts) and "\x1b" not in "".join(page.texts)
    text = report.read_text()
    assert "<img" not in text and "<script>" not in text and text.count("<script") == 1
    for path in (report.parent / "report_figures").glob("*.svg"):
        xml.etree.ElementTree.parse(path)
        assert "<img" not in path.read_text() and "<script" not in path.read_text()


def test_ablation_table(page):
    assert table(page, "ablation-pass-1") == [[visible(EVIL), [-0.1, -0.2, -0.05]]]


def test_config_difference_is_shown(page):
    """The changed setting, and neither seed nor name; what is equal only in the full lists."""
    at = page.texts.index("setting")
    shown = page.texts[at : page.texts.index("All settings")]
    assert "rollout.latent.law.one_sided" in shown
    assert not {"seed", "name", "optim.b1"} & set(shown)
    assert "optim.b1" in page.texts


def test_constant_metrics_are_listed_not_drawn(page):
    assert "rl-rollout-nan-frac" not in page.figures
    assert any("rollout/nan_frac = 0" in text for text in page.texts)


def test_numbers_have_four_digits_and_only_constants_are_constant():
    assert [figures.number(x) for x in (0.123456, 12345.6, 3, None)] == ["0.1235", "1.235e+04", "3", "–"]
    for values, expected in (([2.0, 2.0], 2.0), ([1.0, 1.000001], 1.0), ([1.0, 1.001], None), ([1.0, 1.05], None), ([0.0, 1e-9], None)):
        x = np.array(values)
        assert constant([Band("a", np.arange(2), x, x, x, np.ones(2))]) == expected, values


def test_groups(folder):
    """Seeds of equal settings are one group; another setting or a supervised run is another."""
    groups = group_runs(find_runs([folder[0]]))
    assert [(g.label, [r.seed for r in g.runs], g.kind) for g in groups] == [
        (visible(EVIL), [0], "rl"),
        ("base", [0, 1], "rl"),
        ("sft", [None], "sft"),
    ]


def test_the_same_seed_twice_is_no_band(tmp_path):
    for place in ("a", "b"):
        write_run(tmp_path / place, steps=2)
    groups = group_runs(find_runs([tmp_path]))
    assert [len(g.runs) for g in groups] == [1, 1] and groups[0].label != groups[1].label


def test_unknown_metrics_are_drawn_as_diagnostics(tmp_path, monkeypatch):
    """A metric of an area that the report has never heard of."""
    monkeypatch.setitem(METRICS, "strange/thing", METRICS["reward/mean"])
    write_run(tmp_path / "a", steps=3, metrics={"strange/thing": [1.0, 2.0, 4.0]})
    page = Page(write_report([tmp_path], tmp_path / "r.html").read_text())
    assert "section-rl-diagnostics" in page.ids
    assert [row[2] for row in table(page, "rl-strange-thing")] == [[1.0], [2.0], [4.0]]


def test_bins_become_one_histogram(tmp_path, monkeypatch):
    """Means over the first and the last tenth of 20 steps, bin by bin."""
    rng = np.random.default_rng(0)
    bins = {f"diag/margin_hist_{label}": rng.random(20).tolist() for label in ("lt-1", "-1..0", "gt0")}
    for name in bins:
        monkeypatch.setitem(METRICS, name, METRICS["reward/mean"])
    write_run(tmp_path / "a", steps=20, metrics=bins)
    page = Page(write_report([tmp_path], tmp_path / "r.html").read_text())
    rows = table(page, "rl-diag-margin-histogram")
    assert [row[1] for row in rows] == ["lt-1", "-1..0", "gt0"]
    for row, values in zip(rows, bins.values(), strict=True):
        np.testing.assert_allclose([row[2][0], row[3][0]], [np.mean(values[:2]), np.mean(values[-2:])])
    assert not any("margin-hist-" in key for key in page.figures)


def test_benchmarks_of_a_suite_are_a_table(tmp_path):
    write_run(tmp_path / "a", steps=2)
    (tmp_path / "a" / "eval" / "svamp").mkdir()
    (tmp_path / "a" / "eval" / "svamp" / "eval.json").write_text(json.dumps(evaluation(0.25)))
    text = write_report([tmp_path], tmp_path / "r.html").read_text()
    assert "<h3>Benchmarks</h3>" in text and ">svamp<" in text and 'value="0.25"' in text


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_runs([tmp_path / "nothing"])
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        find_runs([tmp_path])
    (tmp_path / "ablation.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="no list of rows"):
        read_ablation(tmp_path / "ablation.json")


@pytest.mark.parametrize(
    "row",
    [
        {"cell": "x", "metrics": {"m": {"value": 1.0, "low": 0.5, "high": 2}}, "differences": {"m": {"value": -1, "low": -2, "high": 0}}},
        {"name": "x", "m": {"mean": 1.0, "lo": 0.5, "hi": 2, "paired": {"value": -1, "low": -2, "high": 0}}},
        {"label": "x", "m": {"value": 1.0, "low": 0.5, "high": 2}, "m_difference": {"value": -1, "low": -2, "high": 0}},
    ],
)
def test_ablation_rows_of_any_shape(tmp_path, row):
    path = tmp_path / "ablation.json"
    path.write_text(json.dumps({"rows": [row]}))
    (entry,) = read_ablation(path).rows
    assert (entry.name, entry.metrics, entry.differences) == (
        "x",
        {"m": {"value": 1.0, "low": 0.5, "high": 2}},
        {"m": {"value": -1, "low": -2, "high": 0}},
    )


def test_smoothing_and_thinning():
    rng = np.random.default_rng(0)
    values = rng.random(50)
    out = smooth(values, 5)
    for i in range(50):
        reach = min(i, 49 - i, 2)
        assert math.isclose(out[i], values[i - reach : i + reach + 1].mean())
    assert thin(5, 9) == [0, 1, 2, 3, 4]
    some = thin(1000, 13)
    assert len(some) == 13 and some[0] == 0 and some[-1] == 999
    steps = np.arange(100)
    assert plots.smoothing(Band("a", steps, steps, steps, steps, steps)) % 2 == 1


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_in_a_real_browser(report):
    """Renders at phone and desktop width, light and dark: no complaint on the console, no request, no sideways scrolling, readable colours."""
    with browser.Browser() as chromium:
        backgrounds = set()
        for width, height in browser.SIZES.values():
            for dark in (False, True):
                chromium.open(report, width, height, dark)
                assert chromium.complaints() == []
                assert chromium.evaluate("document.documentElement.scrollWidth") <= width
                flat = "[...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().height < 60).length"
                assert chromium.evaluate(flat) == 0
                backgrounds.add(chromium.evaluate("getComputedStyle(document.body).backgroundColor"))
                ink = luminance(chromium.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill"))
                ground = luminance(chromium.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor"))
                assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 4.5  # WCAG AA
        assert len(backgrounds) == 2


def luminance(css):
    """Relative luminance of rgb(r, g, b), as WCAG defines it."""
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (int(v) / 255 for v in re.findall(r"\d+", css)[:3]))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
