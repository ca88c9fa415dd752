"""What turns a large experiment into one that runs on a CPU in a minute: a tiny random model of the same family, and the files of this folder.

The numbers mean nothing: a random model solves no problem. Every part of the real run is exercised, in the same data format.
"""

import dataclasses
import pathlib

from lgrpo.config import ExperimentConfig, ModelConfig
from lgrpo.config.overrides import apply_diff

HERE = pathlib.Path(__file__).parent
SIZES = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 64, "vocab_size": 0}
DIFF = {
    "data.source": "jsonl",
    "data.path": str(HERE / "data"),
    "data.eval_split": "test",
    "data.max_prompt": 192,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 24,
    "rollout.latent.max_latent": 8,  # a random model would seldom end its thinking
    "algo.dynamic.max_rounds": 2,
    "train.num_steps": 3,
    "train.init_from": "",
    "train.microbatch": 0,
    "train.prompts_per_step": 8,
    "mesh.fsdp": 1,
    "mesh.data": -1,
    "checkpoint.every": 0,
    "evaluation.every": 3,
    "evaluation.problems": 16,
    "evaluation.batch": 16,
    "evaluation.bootstrap": 200,
}


def smoke(cfg: ExperimentConfig, family: str, eos: str) -> ExperimentConfig:
    """`cfg` at toy size. family: folder of the tokenizer; eos: its end of sequence."""
    model: ModelConfig = dataclasses.replace(cfg.model, **SIZES, dtype="float32", remat=False)
    cfg = apply_diff(dataclasses.replace(cfg, model=model), DIFF)
    return apply_diff(cfg, {"name": f"{cfg.name}_smoke", "data.tokenizer": str(HERE / family), "data.eos": eos})
