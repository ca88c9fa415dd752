"""Stage 1 of Latent-SFT by itself: the encoder learns, the decoder is frozen.

Starts from runs/demo/explicit_sft; `equations_7.py --stage encoder` is the same run inside the chain.
Run: python -m lgrpo sft experiments/latent_sft/encoder.py --workdir runs/latent_sft/equations_7/encoder
Not run at length.
"""

from experiments.latent_sft import common
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff


def get_config() -> ExperimentConfig:
    return apply_diff(common.stage_config("equations_7", "encoder"), {"name": "encoder", "train.init_from": "runs/demo/explicit_sft"})
