"""Stage 1 of Latent-SFT by itself: the decoder learns, the encoder is frozen.

Starts from runs/latent_sft/equations_7/encoder; `equations_7.py --stage decoder` is the same run inside the chain.
Run: python -m lgrpo sft experiments/latent_sft/decoder.py --workdir runs/latent_sft/equations_7/decoder
Not run at length.
"""

from experiments.latent_sft import common
from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff


def get_config() -> ExperimentConfig:
    return apply_diff(
        common.stage_config("equations_7", "decoder"), {"name": "decoder", "train.init_from": "runs/latent_sft/equations_7/encoder"}
    )
