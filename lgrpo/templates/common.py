"""What the stages share: a tiny model, the embedded task, supervised training, evaluation."""

from lgrpo.config import CheckpointConfig, DataConfig, EvaluationConfig, OptimConfig, SftConfig
from lgrpo.models.presets import tiny

MODEL = tiny()
DATA = DataConfig(difficulty="demo", max_prompt=40)
SFT = SftConfig(batch_size=64, max_chain=28, max_answer=3, compression=7, superposition="ramp", label_noise=0.5)
OPTIM = OptimConfig(lr=3e-3, schedule="cosine", warmup=50, b2=0.98)
CHECKPOINT = CheckpointConfig(every=100, keep=1, keep_best=False)
EVALUATION = EvaluationConfig(problems=500, samples=4, batch=250)
