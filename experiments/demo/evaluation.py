"""Evaluation of the demo's stages on the test split: noise sweep and, for the latent ones, interventions on the latents.

Reads the newest checkpoints of a finished `make demo`; stages that are not there are left out. Interrupted and started again, it goes on where
it was. Writes <workdir>/<stage>/eval_demo/ (see `python -m lgrpo eval`) and the tables of all stages to <workdir>/eval_demo.{md,json}.

Run: python -m experiments.demo.evaluation --workdir runs/demo [--problems 1000] [--seed 0]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

from experiments.demo.__main__ import STAGES, stage_config
from lgrpo.config import ExperimentConfig
from lgrpo.errors import UserError
from lgrpo.evaluation import evaluate
from lgrpo.evaluation.compare import compare
from lgrpo.evaluation.counterfactual import effect_rows
from lgrpo.evaluation.summary import shown
from lgrpo.runs.metrics import summary_table
from lgrpo.runs.storage import write_text

OUT = "eval_demo"
SWEEP = (0.25, 0.5, 1.5)
PAIRS = (("latent_sft", "latent_grpo"), ("explicit_sft", "explicit_grpo"), ("explicit_grpo", "latent_grpo"))


def demo_config(name: str, workdir: pathlib.Path, seed: int, problems: int) -> ExperimentConfig:
    """The stage's config with everything that there is to evaluate."""
    cfg = stage_config(name, workdir, seed)
    latent = cfg.rollout.mode == "latent"
    asked = {"problems": problems, "batch": min(cfg.evaluation.batch, problems)}
    asked |= {"noise_sweep": SWEEP if latent else (), "counterfactual": latent}
    return dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, **asked))


def tables(workdir: pathlib.Path, results: dict[str, dict[str, Any]]) -> str:
    """Markdown: accuracies and lengths, the sweep, the interventions, paired comparisons."""
    metrics = ("pass@1", "pass@2", "pass@4", "maj@4", "latent_steps", "answer_tokens", "truncated_frac")
    rows = [
        {"model": name, "noise-free": shown(r["noise_free"]["pass@1"], 3), **{m: shown(r["sampled"].get(m), 3) for m in metrics}}
        for name, r in results.items()
    ]
    parts = ["Noise-free accuracy, and metrics under the noise of training", summary_table(rows, list(rows[0]))]
    sweep = [
        {"model": name, **{f"noise {scale}": shown(numbers["pass@1"], 3) for scale, numbers in r["sweep"].items()}}
        for name, r in results.items()
        if r["sweep"]
    ]
    if sweep:
        parts += ["pass@1 by scale of the latent noise", summary_table(sweep, list(sweep[0]))]
    for name, r in results.items():
        if r["counterfactual"]:
            found = effect_rows(r["counterfactual"])
            parts += [f"{name}: accuracy when latent steps feed something else", summary_table(found, list(found[0]))]
    pairs = []
    for a, b in PAIRS:
        if a in results and b in results:
            for row in compare(workdir / a / OUT, workdir / b / OUT):
                if row["pass"] in ("noise_free", "sampled"):
                    gain = {"pass": row["pass"], "b - a": shown(row["difference"], 3), "p": f"{row['p']:.2g}", "test": row["test"]}
                    pairs.append({"a": a, "b": b, **gain})
    if pairs:
        parts += ["Paired comparisons on the same problems", summary_table(pairs, list(pairs[0]))]
    head = f"# The demo's stages on the test split: {next(iter(results.values()))['problems']} problems, 95 % intervals over problems\n"
    return head + "".join(f"\n{title}\n\n```\n{body}\n```\n" for title, body in zip(parts[::2], parts[1::2], strict=True))


def run(workdir: pathlib.Path, seed: int, problems: int) -> int:
    """Evaluates the stages that are there. Errors: UserError when latent_grpo is not."""
    there = [name for name in STAGES if (workdir / name / "checkpoints").is_dir()]
    if "latent_grpo" not in there:
        raise UserError(f"{workdir / 'latent_grpo'}: no checkpoints; run `make demo` first, or give the --workdir of a finished demo")
    results = {}
    for name in there:
        print(f"\n== {name}", file=sys.stderr)
        evaluate.run(demo_config(name, workdir, seed, problems), workdir / name, out=OUT)
        results[name] = json.loads((workdir / name / OUT / "eval.json").read_text())
    text = tables(workdir, results)
    write_text(workdir / f"{OUT}.json", json.dumps(results, indent=1) + "\n")
    write_text(workdir / f"{OUT}.md", text)
    print(f"\n{text}\nwritten to {workdir / OUT}.md and .json")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo.evaluation", description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0, help="the seed that the demo was run with")
    parser.add_argument("--problems", type=int, default=1000, help="problems of the test split")
    args = parser.parse_args()
    try:
        return run(args.workdir, args.seed, args.problems)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
