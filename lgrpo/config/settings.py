"""Every setting of lgrpo, in one tree of frozen dataclasses.

The tree is hashable (a jit static argument), holds JSON-able leaves only and knows no defaults twice. The text under each field is its
documentation: `python -m lgrpo train experiments/x.py --help` prints it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from lgrpo.bounds import BelowOne, Count, Mass, Natural, NonNegative, Positive
from lgrpo.config.algo import AlgoConfig, DynamicSamplingConfig, InvalidMode, LoraConfig  # noqa: F401  re-exported: all settings are imported
from lgrpo.config.gym import GymConfig
from lgrpo.config.model import ModelConfig, RopeScaling  # noqa: F401  from here
from lgrpo.config.objects import name_of
from lgrpo.latent.law import Law
from lgrpo.latent.laws.gumbel import Gumbel

Grader = Literal["auto", "numeric", "math", "choice", "official"]
Benchmark = Literal["gsm8k", "gsm8k_aug", "gsm_hard", "svamp", "multiarith", "math500", "aime24", "aime25", "gpqa_diamond", "dapo_math_17k"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """How a latent step is sampled and scored (DESIGN section 5)."""

    k: Count = 10
    """Number K of tokens in a mixture."""
    tau: Positive = 1.0
    """Temperature of the mixture weights, softmax(scores / tau)."""
    noise_scale: NonNegative = 1.0
    """Scale s of the law's noise; 1: as the law says."""
    law: Law = Gumbel()
    """How a latent step is drawn and what its log-prob is: NAME of a file in lgrpo/latent/laws, module:Class or file.py:Class. Its settings are
    options of their own."""
    min_latent: Natural = 0
    """The end of thinking is impossible in the first min_latent steps, in sampling and in scoring."""
    max_latent: Natural = 0
    """After this many latent steps thinking is ended by force (that step is masked from the loss). 0: no limit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """How ordinary tokens are sampled: answers, and all of an explicit chain."""

    sampler: Literal["sample", "greedy", "gumbel_top1"] = "sample"
    """sample: softmax(z / temperature); greedy: argmax; gumbel_top1: the best clamped-Gumbel score (what the official code does)."""
    temperature: Positive = 1.0
    """Temperature T, in sampling and in the loss."""
    top_p: Mass = 1.0
    """Nucleus mass; below 1 only in evaluation, since the loss scores the untruncated distribution."""
    top_k: Natural = 0
    """Keep the k most likely tokens; 0: all. Evaluation only, as top_p."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """One group-sampled rollout."""

    mode: Literal["latent", "explicit"] = "latent"
    """Think in mixtures, or in ordinary tokens."""
    group_size: Count = 8
    """Completions G per prompt."""
    max_new_tokens: Count = 32
    """Longest completion T, latent steps and answer tokens together."""
    cache_parts: Count = 4
    """Equal parts, of at least 32 columns, that the cache is made in. A step reads those begun so far; each is a loop of its own."""
    kv_dtype: Literal["compute", "bfloat16"] = "compute"
    """Type of the key/value cache: that of the computation, or bfloat16 (half the memory; log-probs then differ from the learner's)."""
    latent: LatentConfig = LatentConfig()
    answer: AnswerConfig = AnswerConfig()


SftStage = Literal["explicit", "latent", "encoder", "decoder", "union"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised training: explicit chains, or Latent-SFT (stage 1 makes labels, stage 2 trains the policy on them)."""

    stage: SftStage = "explicit"
    """explicit: cross-entropy on chain and answer; encoder, decoder, union: stage 1, training the encoder, the decoder or both; latent: stage 2
    on latent labels."""
    labels: Literal["superposition", "encoder"] = "superposition"
    """Where latent labels come from: mixtures of the chunk's tokens, or a label set written by `--stage labels`."""
    label_path: str = ""
    """Folder of the label set, for labels=encoder."""
    compression: Count = 4
    """Chain tokens c per latent."""
    superposition: Literal["uniform", "binomial", "ramp"] = "uniform"
    """Weights of the c tokens inside a superposition label."""
    projection: Literal["dot", "cosine"] = "dot"
    """How the encoder's hidden state is compared with the embedding table."""
    projection_temperature: Positive = 1.0
    """Temperature of the softmax over the K best scores."""
    label_noise: NonNegative = 0.0
    """Scale of the Gumbel noise on the log label weights, redrawn every batch; 0: none."""
    label_clamp: tuple[float, float] | None = (-1.5, 3.0)
    """Range of the scaled label noise; None: unclamped."""
    label_redraws: Natural = 100
    """Noise that puts the end of thinking on top is drawn again up to this many times; then the label stays clean."""
    kl_weight: NonNegative = 1.0
    """Weight of the KL from labels to the model's next-token distribution."""
    lora: LoraConfig = LoraConfig()
    heldout: Natural = 0
    """Records of data.eval_split (they need chains) for the held-out loss at each evaluation, in whole batches; 0: none."""
    patience: Natural = 0
    """Stop after this many evaluations without a better one (pass@1 of the sampled pass; in stage 1 the held-out loss). 0: never."""
    batch_size: Count = 128
    """Sequences per update."""
    packing: bool = True
    """Several records in one row in place of padding, outside stage 1: the same losses and gradients, up to rounding."""
    answer: Literal["final", "solution"] = "final"
    """What follows the thinking in the targets of every stage. final: the gold answer alone, so that it has to come from the thinking; solution: the
    text of the record's column `solution` and then the gold answer, so that the model can also reason in prose after it."""
    max_chain: Count = 48
    """Longest explicit chain in tokens; longer records are dropped and counted."""
    max_answer: Count = 8
    """Longest answer in tokens, its solution and the end of sequence included."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where problems come from and how they become tokens."""

    source: Literal["word_problems", "jsonl", "reasoning_gym"] | Benchmark = "word_problems"
    """word_problems: the embedded task; jsonl: files at `path`; reasoning_gym: made as `gym` says; else a data set of lgrpo/data/registry.py, by
    name."""
    difficulty: str = "medium"
    """Builder config of the embedded task."""
    gym: GymConfig = GymConfig()
    path: str = ""
    """jsonl: folder with <split>.jsonl files. Registered data sets: folder with <name>_<split>.jsonl (or .parquet, .csv); empty: downloaded."""
    data_dir: str = "~/.cache/lgrpo/tfds"
    """Where tensorflow-datasets keeps prepared data."""
    tokenizer: str = "embedded"
    """embedded: the word-level tokenizer of the embedded task; else a tokenizer.json or a folder that holds one."""
    template: Literal["plain", "instruct", "chat"] = "plain"
    """How a problem becomes a prompt: as it is, after an instruction, or both inside the tokenizer's own chat template."""
    instruction: str | None = None
    """Instruction of templates instruct and chat. None: the data set's own, else the general one; an empty text: none."""
    few_shot: str = ""
    """Text file of worked examples that goes before every problem; `{problem}` in it says where the problem goes. Empty: none."""
    train_split: str = "train"
    """Split to train on; NAME/SPLIT for that of another registered data set. train[:3000] is a part of it, by record numbers."""
    eval_split: str = "test"
    """Split to evaluate on; NAME/SPLIT for that of another registered data set, such as svamp/test. test[:500] is a part of it."""
    max_prompt: Count = 64
    """Longest prompt P in tokens; prompts are padded to it on the left."""
    prompt_bucket: Natural = 0
    """RL pads a batch to the next multiple of this that holds its prompts (one compilation per width); 0: always to max_prompt."""
    overlong: Literal["error", "drop"] = "drop"
    """What to do with prompts longer than max_prompt: stop, or leave them out and count them."""
    think_start: str = "<think>"
    """Text of the token that opens thinking."""
    think_end: str = "</think>"
    """Text of the token that ends thinking."""
    think_end_id: int = -1
    """Id of the token that ends thinking. -1: resolved from the tokenizer; another value must agree with it."""
    eos: str = "<eos>"
    """Text of the end-of-sequence token."""
    eos_id: int = -1
    """Id of the end of sequence; resolved as think_end_id is."""
    more_eos: tuple[str, ...] = ()
    """Further tokens that end an answer and are no part of it, as chat models have them; targets of supervised training end with `eos`."""
    more_eos_ids: tuple[int, ...] = ()
    """Their ids; empty: resolved from the tokenizer."""
    grader: Grader = "auto"
    """auto: multiple choice where the gold answer is a letter A-D, else math; numeric: numbers and equal text; math: also LaTeX, by math-verify in
    worker processes; choice; official: the authors' comparison of strings."""
    reward: str = "correct"
    """What a completion is paid: correct, correct_and_short (lgrpo/rewards/reward.py), or a function reward(text, gold, sample) of one's own as
    module:function or file.py:function; an experiment may give the function itself."""
    grader_seconds: Positive = 5.0
    """Time limit of one LaTeX comparison; beyond it the answer counts as `timeout`."""
    grader_workers: Count = 2
    """Processes that compare LaTeX. None is started before an answer needs one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", name_of(self.reward, "data.reward"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW."""

    lr: Positive = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    warmup: Natural = 0
    """Updates over which the learning rate rises linearly."""
    b1: BelowOne = 0.9
    """Decay of the first moment."""
    b2: BelowOne = 0.999
    """Decay of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay, on matrices only."""
    clip_norm: Positive = 1.0
    """Global gradient norm is clipped to this."""
    freeze_embed: bool = False
    """Keep the embedding table as it is."""
    freeze_unembed: bool = False
    """Keep the output projection as it is (with tied embeddings both switches must agree)."""
    max_nonfinite: Count = 5
    """Stop after this many skipped non-finite updates in a row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Device mesh. One axis may be -1: what is left of the devices."""

    data: int = -1
    """Data parallel."""
    fsdp: int = 1
    """Data parallel with sharded weights and optimizer state."""
    tensor: int = 1
    """Sharded heads, feed-forward and vocabulary."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    num_steps: Count = 100
    """RL steps, or updates of supervised training."""
    prompts_per_step: Count = 64
    """Prompts B per RL step."""
    updates_per_step: Count = 1
    """Optimizer updates per RL step; divides prompts_per_step."""
    microbatch: Natural = 0
    """Prompts (RL) or sequences (SFT) per gradient accumulation slice; 0: the whole update. Packed rows fill as many positions as these would."""
    logprob_chunk: Count = 2048
    """Positions whose vocabulary logits exist at once; the [N, T, V] tensor never does."""
    completion_bucket: Natural = 0
    """The learner works on the next multiple of this that holds the batch's completions (same loss); 0: always on max_new_tokens."""
    share_prefix: bool = True
    """Compute each prompt once per group in the learner; False tiles it (same numbers, for checks and benchmarks)."""
    init_from: str = ""
    """Workdir or checkpoint folder to take the initial parameters from; empty: random weights."""
    init_best: bool = False
    """Take the best evaluated checkpoint of init_from instead of the newest."""
    compilation_cache: str = "~/.cache/lgrpo/xla"
    """Folder where the command line keeps compiled programs between runs; JAX_COMPILATION_CACHE_DIR goes before it; empty: none."""
    start_timeout: Positive = 300.0
    """Seconds that the processes of a run wait for each other at the start."""
    log_every: Count = 1
    """Steps between two lines of metrics."""
    profile_steps: tuple[Count, Count] | None = None
    """Write a trace of the steps from the first number up to, not including, the second into <workdir>/profile; None: none (docs/performance.md)."""
    diagnostics: Literal["off", "cheap", "full"] = "full"
    """RL: the diag/ metrics (docs/diagnostics.md). cheap: those from the recorded rollout and the replayed log-probs; full: also those that look at
    the whole vocabulary (the noiseless top-K and the end of thinking at latent steps)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Orbax checkpoints."""

    every: Natural = 50
    """Steps between checkpoints; the last step is always kept. 0: only the last."""
    keep: Count = 2
    """Newest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the checkpoint with the best evaluation."""
    resume: bool = True
    """Continue from the workdir's newest checkpoint when it has one."""
    rollback: Natural | None = None
    """Go back to this saved step, after a divergence; optim.lr may then differ. Later checkpoints move to <workdir>/rolled_back."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation, during training and by `python -m lgrpo eval`."""

    every: Natural = 0
    """Steps between evaluations while training; 0: none."""
    problems: Natural = 256
    """Problems of the split to use; 0: all."""
    samples: Count = 4
    """Samples per problem in the noisy pass."""
    sample_chunk: Natural = 0
    """Samples of a problem that are computed at once; divides `samples`. 0: all."""
    batch: Count = 64
    """Prompts per rollout."""
    noise_scale: float = -1.0
    """Latent noise of the noisy pass; -1: as in training."""
    noise_sweep: tuple[float, ...] = ()
    """Further latent noise scales, each evaluated as the noisy pass is (`python -m lgrpo eval` only)."""
    counterfactual: bool = False
    """Also feed shuffled, reordered, zeroed, repeated, hardened and no latents, noise-free (`python -m lgrpo eval` only)."""
    arms: bool = False
    """Also with at most answer_budget tokens of the answer, without thinking (the same budget), and with hardened latents, noise-free
    (`python -m lgrpo eval` only)."""
    curve: tuple[int, ...] = ()
    """Also with thinking cut after each of these numbers of steps, within answer_budget, noise-free (`python -m lgrpo eval` only)."""
    answer_budget: Natural = 8
    """Tokens of the answer that count in arms and curve, end of sequence included; 0: all."""
    closure: Natural = 0
    """Problems on which each evaluation during RL tests mixture closure (docs/diagnostics.md), latent mode only; 0: none."""
    thinking: bool = True
    """False: prompts open no thinking, completions are ordinary tokens and all of their text is graded, as for a plain instruct model."""
    train_answer: bool = True
    """The noisy pass samples answers as training does; False: by `answer` below. (The noise-free pass is greedy.)"""
    answer: AnswerConfig = AnswerConfig()
    bootstrap: Count = 2000
    """Bootstrap resamples over problems for the intervals."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlarmConfig:
    """Signs of divergence: one line on stderr, with value and step, whenever a metric crosses its limit. None: not watched."""

    latent_share_below: float | None = None
    """rollout/latent_share: the policy stops thinking in mixtures. 0.05 suits a latent run."""
    invalid_above: float | None = 0.95
    """rollout/invalid_frac: next to nothing finishes."""
    replay_gap_above: float | None = 1.0
    """policy/replay_gap in nats: the learner does not see the probabilities that were sampled from."""
    entropy_below: float | None = None
    """Minus policy/logp in nats per step, the sampled estimate of the entropy; that of a latent step counts its density, so measure yours first."""
    nan_above: float | None = 0.0
    """rollout/nan_frac: completions whose logits were not finite."""
    uninformative_steps: Natural = 20
    """RL steps in a row without one group whose valid rewards differ: nothing is learned. 0: not watched."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Writers. metrics.jsonl and samples.jsonl in the workdir are the record; the others are copies, and none of them can stop a run."""

    tensorboard: bool = True
    """Also write TensorBoard event files, in the workdir."""
    wandb: bool = False
    """Also write to Weights & Biases (pip install 'lgrpo[wandb]'; WANDB_MODE=offline keeps the run in the workdir)."""
    trackio: bool = False
    """Also write to trackio (pip install 'lgrpo[trackio]')."""
    project: str = "lgrpo"
    """Project of wandb and trackio in which the run appears."""
    samples_every: Natural = 0
    """RL steps between two tables of completions, with their latents and verdicts; 0: none."""
    samples: Count = 1
    """Prompts in such a table, each with its whole group."""
    progress: bool = True
    """Show a progress bar."""
    alarms: AlarmConfig = AlarmConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """An experiment. `experiments/<name>.py` returns one from get_config()."""

    name: str = "unnamed"
    """Name in logs and tables."""
    seed: Natural = 0
    """Every random number is a function of seed, step and stream."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    algo: AlgoConfig = AlgoConfig()
    sft: SftConfig = SftConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
