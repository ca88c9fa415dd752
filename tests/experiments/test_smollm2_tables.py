"""The study's tables are drawn from what it wrote, whatever part of it there is, and the page says nothing else."""

import json
import shutil
from dataclasses import replace

import pytest

from experiments.smollm2 import tables
from experiments.smollm2.results import RESULTS, collect, read, with_start
from lgrpo.errors import UserError


def cell(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def outcome(how, uid, correct):
    """A row of eval.jsonl with one sample a problem."""
    lengths = dict.fromkeys(("chain_tokens", "latent_steps", "answer_tokens", "completion_tokens"), 1)
    return (
        {"pass": how, "uid": uid, "sample": 0, "correct": bool(correct), "gold": "1"}
        | lengths
        | dict.fromkeys(("answer", "category", "finish", "forced"), "")
    )


def write_outcomes(folder, accuracy):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [outcome(how, uid, uid < 20 * accuracy) for how in ("noise_free", "sampled") for uid in range(20)]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_stage(folder, accuracy, flop, *, done=True, arms=True, elsewhere=False, samples=8):
    """A stage's folder as a study leaves it."""
    (folder / "eval").mkdir(parents=True)
    rows = [{"step": 1, "perf/flop_total": flop / 2, "perf/seconds_total": 1.0, "diag/margin": 1.0}, {"step": 2, "perf/flop_total": flop}]
    rows[1] |= {"perf/seconds_total": 10.0, "reward/mean": 0.5, "time/step_s": 1.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"about": {"checkpoint": str(folder), "data": f"jsonl {folder}", "split": "test"}, "problems": 20}
    result |= {"noise_free": {"pass@1": cell(accuracy), "chain_tokens": cell(6.5)}}
    result |= {"sampled": {f"pass@{k}": cell(accuracy - 0.1 + 0.02 * k) for k in range(1, samples + 1)}}
    if arms:
        result["arms"] = {name: {"accuracy": cell(accuracy - 0.1 * i)} for i, name in enumerate(("free", "forced", "floor"))}
        result["curve"] = {"10": {"accuracy": cell(0.31)}, "2": {"accuracy": cell(0.21)}}
    write_outcomes(folder / "eval", accuracy)
    for name in ["eval", *["held_out", "transfer/svamp"] * elsewhere]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "eval.json").write_text(json.dumps(result))
    if done:
        (folder / "stage.json").write_text("{}")


@pytest.fixture
def study(tmp_path):
    """Two seeds of the start, one of what follows, a stage in the middle of its training, and one whose start is not there."""
    root = tmp_path / "runs" / "cpu"
    for seed in (0, 1):
        write_stage(root / f"seed{seed}" / "explicit_sft", 0.5 + 0.1 * seed, 1e12 * (seed + 1), elsewhere=True)
    write_stage(root / "seed0" / "explicit_grpo", 0.7, 4e12)
    write_stage(root / "seed0" / "latent_sft", 0.4, 2e12, done=False)
    write_stage(root / "seed1" / "exact", 0.6, 8e12, arms=False)
    (root / "seed0" / "results.json").write_text("{}")
    return root


def test_what_a_study_wrote_is_taken_over_small_and_without_its_places(study, tmp_path):
    out = tmp_path / "results"
    (out / "cpu" / "seed1" / "paper").mkdir(parents=True)  # of an earlier study of this seed
    assert collect(study, out) == ["seed0/explicit_grpo", "seed0/explicit_sft", "seed1/exact", "seed1/explicit_sft"]
    files = {str(file.relative_to(out / "cpu")): file.read_text() for file in out.rglob("*.json*")}
    assert str(tmp_path) not in "".join(files.values()) and '"jsonl"' in files["seed0/explicit_sft/transfer/svamp/eval.json"]
    assert not any("paper" in name or "latent_sft" in name for name in files) and "seed0/results.json" in files
    kept = [set(json.loads(line)) for line in files["seed0/explicit_grpo/metrics.jsonl"].splitlines()]
    assert kept == [{"step", "perf/flop_total", "perf/seconds_total"}, {"step", "perf/flop_total", "perf/seconds_total", "reward/mean"}]
    with pytest.raises(UserError, match="no finished stage"):
        collect(tmp_path / "nothing", out)


def test_seeds_that_a_study_lacks_stay_if_they_saw_the_same_problems(study, tmp_path):
    out = tmp_path / "results"
    (study / "data").mkdir()
    (study / "data" / "dataset.json").write_text('{"seed": 0}')
    collect(study, out)
    shutil.rmtree(study / "seed0")
    write_stage(study / "seed2" / "explicit_sft", 0.9, 1e12)
    collect(study, out)
    assert [s.seed for s in read(out / "cpu")["explicit_sft"]] == [0, 1, 2]
    (study / "data" / "dataset.json").write_text('{"seed": 5}')
    with pytest.raises(UserError, match=r"dataset\.json: other problems than those of the results"):
        collect(study, out)
    assert [s.seed for s in read(out / "cpu")["explicit_sft"]] == [0, 1, 2]


def test_tables_hold_the_numbers_of_the_files_and_dashes_where_there_are_none(study, tmp_path):
    out = tmp_path / "results"
    collect(study, out)
    stages = read(out / "cpu")
    assert list(stages) == ["explicit_sft", "exact", "explicit_grpo"]
    assert with_start(stages, "explicit_grpo", 0, "flop") == 5e12 and with_start(stages, "exact", 1, "flop") is None
    text = tables.markdown(out)
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| e")]
    main = {row[0]: row[1:] for row in rows[:3]}
    # Of two seeds the mean with the lowest and the highest, of one its own interval; pass@8 is the largest k.
    assert main["explicit_sft"][:2] == ["0, 1", "0.550 [0.500, 0.600]"] and main["explicit_sft"][-2:] == ["1.5e+12", "10"]
    assert main["explicit_grpo"] == [
        "0",
        "0.700 [0.650, 0.750]",
        "0.620 [0.570, 0.670]",
        "0.760 [0.710, 0.810]",
        "6.50 [6.45, 6.55]",
        "5e+12",
        "20",
    ]
    assert main["exact"][-2:] == ["–", "–"] and "pass@8" in text
    assert ["explicit_grpo", "0.700 [0.650, 0.750]", "0.600 [0.550, 0.650]", "0.500 [0.450, 0.550]", "–"] in rows
    assert text.index("| explicit_grpo | 2 |") < text.index("| explicit_grpo | 10 |")
    assert ["explicit_sft", "0.550 [0.500, 0.600]", "–", "0.550 [0.500, 0.600]", "–"] in rows
    assert "Not run, or not finished: latent_sft, exact_k2" in text and tables.NOT_RUN not in text


def test_each_largest_k_has_its_column_over_the_seeds_that_have_it(study, tmp_path):
    write_stage(study / "seed3" / "explicit_grpo", 0.5, 1e12, samples=4)
    collect(study, tmp_path)
    table = tables.markdown(tmp_path).split("\n\n")[3].splitlines()
    head, rows = table[0].split(" | "), {line.split(" | ")[0]: line.split(" | ") for line in table[2:]}
    first, second = head.index("pass@4"), head.index("pass@8")
    assert rows["| explicit_grpo"][1] == "0, 3"
    assert rows["| explicit_grpo"][first : second + 1] == ["0.580 [0.480, 0.680]", "0.760 [0.710, 0.810]"]
    assert rows["| exact"][first : second + 1] == ["0.580 [0.530, 0.630]", "0.660 [0.610, 0.710]"]


def test_what_rl_changed_is_paired_over_problems_of_the_seeds_that_both_have(study, tmp_path):
    """exact has seed 1 alone and no start there; explicit_grpo has seed 0, where its start solves 10 of the 14 problems that it solves."""
    collect(study, tmp_path)
    stages = read(tmp_path / "cpu")
    found = tables.difference(stages, "explicit_sft", "explicit_grpo", "noise_free")
    assert found["value"] == pytest.approx(0.2) and 0 < found["low"] < 0.2 < found["high"] < 0.45
    assert tables.difference(stages, "exact", "explicit_grpo", "noise_free") is None
    both = {name: [*stages[name], replace(stages[name][0], seed=9)] for name in ("explicit_sft", "explicit_grpo")}
    assert tables.difference(both, "explicit_sft", "explicit_grpo", "sampled") == found
    unlike = {seed: dict.fromkeys(map(str, range(20)), float(seed)) for seed in (0, 1)}
    pair = {"exact": (0, 1), "explicit_grpo": (1, 1)}  # of seed 0 all problems more, of seed 1 none
    made = {
        name: [replace(stages["exact"][0], seed=i, outcomes={"eval": {"sampled": unlike[right]}}) for i, right in enumerate(of)]
        for name, of in pair.items()
    }
    differences = [tables.difference(made, *pair, "sampled", only)["value"] for only in ([0], [1], None)]
    assert differences == [1.0, 0.0, 0.5] and tables.difference(made, *pair, "sampled", [7]) is None
    rows = [line for line in tables.markdown(tmp_path).splitlines() if line.startswith("| explicit_grpo | explicit_sft |")]
    cell = f"+0.200 [+{found['low']:.3f}, +{found['high']:.3f}]"
    assert rows == [f"| explicit_grpo | explicit_sft | 0 | {cell} | {cell} | – | – |"]


def test_a_stage_is_compared_with_its_start_as_it_samples_itself(study, tmp_path):
    """Another K: the start's own evaluation says nothing about what RL did. The same K and another law: nothing about its samples."""
    for name, accuracy in (("latent_sft", 0.5), ("exact_k2", 0.8), ("naive_latent", 0.9)):
        write_stage(study / "seed1" / name, accuracy, 1e12)
    collect(study, tmp_path / "a")
    stages = read(tmp_path / "a" / "cpu")
    found = [
        tables.difference(stages, "latent_sft", name, how) for name in ("exact_k2", "naive_latent") for how in ("noise_free", "sampled")
    ]
    assert found[:2] == [None, None] and found[2]["value"] == pytest.approx(0.4) and found[3] is None
    write_outcomes(study / "seed1" / "latent_sft" / "as_exact_k2", 0.7)
    (study / "seed1" / "latent_sft" / "as_exact_k2" / "eval.json").write_text("{}")
    collect(study, tmp_path / "b")
    stages = read(tmp_path / "b" / "cpu")
    assert tables.difference(stages, "latent_sft", "exact_k2", "noise_free")["value"] == pytest.approx(0.1)
    assert "| exact_k2 | latent_sft | 1 | +0.100 [" in tables.markdown(tmp_path / "b")
    assert {row[0] for row in tables.figure(read(tmp_path / "a" / "cpu")).rows} == {"exact", "naive_latent", "explicit_grpo"}


def test_candidates_for_a_stage_are_kept_and_shown_apart(study, tmp_path):
    write_stage(study / "choice" / "compression2_updates4", 0.3, 2e12)
    assert "choice/compression2_updates4" in collect(study, tmp_path)
    text = tables.markdown(tmp_path)
    assert "| compression2_updates4 | 0.300 [0.250, 0.350] | 0.220 [0.170, 0.270] | 6.50 [6.45, 6.55] | 2e+12 |" in text
    assert "compression2_updates4" not in read(tmp_path / "cpu")


def test_candidates_that_a_study_lacks_stay_if_they_saw_the_same_problems(study, tmp_path):
    (study / "data").mkdir()
    (study / "data" / "dataset.json").write_text('{"seed": 0}')
    for name, accuracy in (("k4", 0.3), ("k2", 0.4)):
        write_stage(study / "choice" / name, accuracy, 2e12)
        collect(study, tmp_path / "results")
        shutil.rmtree(study / "choice")
    assert "| k2 | 0.400" in tables.markdown(tmp_path / "results") and "| k4 | 0.300" in tables.markdown(tmp_path / "results")
    for seed in ("seed0", "seed1"):  # every seed comes anew, with other problems: the candidates that stay would have seen others
        assert (study / seed).is_dir()
    (study / "data" / "dataset.json").write_text('{"seed": 5}')
    with pytest.raises(UserError, match="other problems than those of the results"):
        collect(study, tmp_path / "results")


def test_the_page_gets_tables_and_figure_and_keeps_its_text(study, tmp_path):
    out, page = tmp_path / "results", tmp_path / "page.md"
    page.write_text(f"before\n<!-- tables -->\n{tables.NOT_RUN}<!-- end of tables -->\nafter\n")
    tables.write(out, page, tmp_path / "images")
    assert tables.NOT_RUN in page.read_text() and not (tmp_path / "images").exists()
    collect(study, out)
    for _ in range(2):
        tables.write(out, page, tmp_path / "images")
        said = page.read_text()
        assert said == f"before\n<!-- tables -->\n{tables.markdown(out)}<!-- end of tables -->\nafter\n"
    assert "![Accuracy over FLOP: explicit_grpo, explicit_sft: 0.500 at 1e+12; explicit_grpo, explicit_grpo: 0.700 at 5e+12]" in said
    assert (tmp_path / "images" / "smollm2.svg").exists()


def test_the_documents_numbers_are_those_of_the_results():
    """While the folder is empty, the page says that nothing was run."""
    said = tables.BLOCK.search(tables.PAGE.read_text(encoding="utf-8"))
    assert said is not None and said[0] == f"{said[1]}{tables.markdown(RESULTS)}{said[2]}"
    assert (tables.IMAGES / "smollm2.svg").exists() == ("images/smollm2.svg" in said[0])
