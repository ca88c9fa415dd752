"""Which labels should Latent-SFT use? Three ways to go on from one explicit model, at equal training tokens, over seeds, in one table.

After the shared start, each gets the same number of token positions (metric sft/tokens: prompts and latents included, padding not, stage 1 counted
once for the encoder and once for the decoder):
    explicit       more supervised training on explicit chains
    superposition  stage 2 on closed-form labels
    encoder        stage 1 (encoder, decoder, union), labels, stage 2 on these
Killed and started again, it goes on.

Run: python -m experiments.latent_sft.study --workdir runs/sft-study [--seeds 0 1 2] [--tokens 8e6] [--setting equations_7]
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import sys
from typing import Any

import numpy as np

from experiments.demo import explicit_sft
from experiments.demo.__main__ import summarise, write_json
from experiments.latent_sft import common
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff
from lgrpo.data.pipeline import sft_stream
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.errors import UserError
from lgrpo.evaluation import evaluate
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.runs.metrics import summary_table
from lgrpo.train import chain, sft
from lgrpo.train.steps.sft import processed_tokens

METHODS = ("explicit", "superposition", "encoder")
# Shares of the budget that the phases of stage 1 get; the rest is stage 2.
SHARES = {"encoder": 0.1, "decoder": 0.15, "union": 0.3, "latent": 0.45}
_T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantiles of Student's t by number of seeds
COLUMNS = ("pass@1", "pass@1_sampled", "chain_tokens")


def steps_for(cfg: ExperimentConfig, tokens: float) -> ExperimentConfig:
    """`cfg` with as many updates as `tokens` allow, measured on the first batches of its data."""
    tokenizer = load_tokenizer(cfg.data)
    ready = apply_diff(resolve(cfg, tokenizer), {"sft.labels": "superposition"})  # labels cost no positions and may not exist yet
    batches = itertools.islice(sft_stream(ready, tokenizer, cfg.data.train_split, batch=cfg.sft.batch_size), 20)
    per_step = float(np.mean([float(processed_tokens(batch, ready)) for batch in batches]))
    steps = max(round(tokens / per_step), 1)
    return apply_diff(cfg, {"train.num_steps": steps, "optim.warmup": min(cfg.optim.warmup, max(steps // 4, 0))})


def start_config(setting: str, seed: int) -> ExperimentConfig:
    """The explicit model that all methods start from."""
    words = common.SETTINGS[setting][0] == "demo_words"
    cfg = common.explicit_words() if words else explicit_sft.get_config()
    return apply_diff(cfg, {"seed": seed, "data.train_split": "train", "data.eval_split": "valid"})


def method_config(method: str, setting: str, seed: int, start: pathlib.Path, tokens: float) -> ExperimentConfig:
    """Config of explicit or superposition training."""
    if method == "explicit":
        cfg = start_config(setting, seed)
        changes: dict[str, Any] = {"name": f"{setting}_explicit_more", "optim.lr": 1e-3}
    else:
        cfg = common.stage_config(setting, "latent")
        k = max(cfg.rollout.latent.k, cfg.sft.compression)
        changes = {"name": f"{setting}_superposition", "sft.superposition": "ramp", "rollout.latent.k": k, "evaluation.every": 0}
    return steps_for(apply_diff(cfg, changes | {"seed": seed, "train.init_from": str(start)}), tokens)


def run_chain(setting: str, seed: int, start: pathlib.Path, tokens: float, workdir: pathlib.Path) -> int:
    """Stage 1, labels and stage 2 within the budget."""

    def make(stage: str) -> ExperimentConfig:
        cfg = apply_diff(common.stage_config(setting, stage), {"seed": seed, "train.init_from": str(start), "evaluation.every": 0})
        return steps_for(cfg, tokens * SHARES[stage])

    return chain.run(make, workdir, "all")


def evaluated(cfg: ExperimentConfig, folder: pathlib.Path) -> dict[str, Any]:
    """Numbers of a trained model on the test split, kept in its folder."""
    done = folder / "study.json"
    if not done.exists():
        evaluate.run(apply_diff(cfg, {"data.eval_split": "test", "evaluation.problems": 1000, "evaluation.samples": 4}), folder)
        write_json(done, summarise(folder))
    return dict(json.loads(done.read_text()))


def run_seed(setting: str, seed: int, tokens: float, workdir: pathlib.Path) -> dict[str, dict[str, Any]] | None:
    """All methods of one seed; None when a signal stopped it."""
    start = workdir / "start"
    if sft.run(start_config(setting, seed), start) == EXIT_PREEMPTED:
        return None
    results = {}
    for method in METHODS:
        folder = workdir / method
        print(f"\n== seed {seed}: {method}", file=sys.stderr)
        if method == "encoder":
            code, folder = run_chain(setting, seed, start, tokens, folder), folder / "latent"
            cfg = apply_diff(common.stage_config(setting, "latent"), {"seed": seed})
        else:
            cfg = method_config(method, setting, seed, start, tokens)
            code = sft.run(cfg, folder)
        if code == EXIT_PREEMPTED:
            return None
        results[method] = evaluated(cfg, folder)
    return results


def over_seeds(values: list[dict[str, float]]) -> str:
    """Mean with its 95 % t interval over seeds; of a single seed, its interval over problems."""
    means = np.array([v["value"] for v in values])
    if len(means) == 1:
        return f"{means[0]:.3f} [{values[0]['low']:.3f}, {values[0]['high']:.3f}]"
    half = _T975.get(len(means), 2.571) * means.std(ddof=1) / len(means) ** 0.5
    return f"{means.mean():.3f} [{means.mean() - half:.3f}, {means.mean() + half:.3f}]"


def table(results: dict[int, dict[str, dict[str, Any]]]) -> str:
    """One row per method, then one per method and seed."""
    rows = []
    for method in METHODS:
        rows.append({"method": method, **{c: over_seeds([r[method][c] for r in results.values()]) for c in COLUMNS}})
    for method, (seed, r) in itertools.product(METHODS, results.items()):
        rows.append({"method": f"{method}, seed {seed}", **{c: over_seeds([r[method][c]]) for c in COLUMNS}})
    return summary_table(rows, ["method", *COLUMNS])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.latent_sft.study", description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/sft-study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=float, default=8e6, help="token positions per method after the shared start")
    parser.add_argument("--setting", choices=tuple(common.SETTINGS), default="equations_7")
    args = parser.parse_args()
    results: dict[int, dict[str, dict[str, Any]]] = {}
    try:
        for seed in args.seeds:
            found = run_seed(args.setting, seed, args.tokens, args.workdir / args.setting / f"seed{seed}")
            if found is None:
                print("interrupted; run the same command again to go on", file=sys.stderr)
                return EXIT_PREEMPTED
            results[seed] = found
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(args.workdir / args.setting / "study.json", {"tokens": args.tokens, "seeds": {str(s): r for s, r in results.items()}})
    print("\n" + table(results) + f"\n\n{args.tokens:.3g} token positions each; 95 % intervals over seeds (of single seeds: over problems)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
