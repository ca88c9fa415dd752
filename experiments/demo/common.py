"""What the four stages of the demo share: model, task, optimizer of supervised training, evaluation."""

import dataclasses

from lgrpo.config import CheckpointConfig, DataConfig, EvaluationConfig, OptimConfig, SftConfig
from lgrpo.models.presets import tiny

MODEL = tiny(d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=192)

# Three or four additions and subtractions inside 0..10: seven chain tokens per operation, `<<3+4=7>>`.
DATA = DataConfig(difficulty="demo", max_prompt=40)
MAX_CHAIN, MAX_ANSWER = 28, 3
# Few worked solutions, many problems with answers: what supervised training leaves to be learned is RL's.
DEMONSTRATIONS = dataclasses.replace(DATA, train_split="train[:750]")

SFT_OPTIM = OptimConfig(lr=3e-3, schedule="cosine", warmup=50, b2=0.98)
SFT = SftConfig(batch_size=64, max_chain=MAX_CHAIN, max_answer=MAX_ANSWER)

EVALUATION = EvaluationConfig(problems=1000, samples=4, batch=250)
CHECKPOINT = CheckpointConfig(every=100, keep=1, keep_best=False)
