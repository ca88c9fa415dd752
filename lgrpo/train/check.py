"""What `python -m lgrpo check` does: all that a command does before its first step, up to the first batch, without computing anything."""

from __future__ import annotations

import ast
import inspect
import pathlib
import re
from typing import Any

from lgrpo.config import AlgoConfig, ExperimentConfig, SftConfig, TrainConfig
from lgrpo.config.objects import importable, run_file
from lgrpo.config.same import check_resume
from lgrpo.config.validate import Kind, mesh_sizes, validate
from lgrpo.data.pipeline import describe_stream, prompt_batches, prompt_stream, sft_stream
from lgrpo.data.prompts import TextTokenizer, describe_think_tokens, load_tokenizer, resolve
from lgrpo.errors import UserError
from lgrpo.evaluation.about import settled
from lgrpo.runs.checkpoint import check_source, saved_config, saved_step
from lgrpo.runs.storage import Place
from lgrpo.train.sft import heldout_batches

_COMMAND = r"lgrpo\s+(train|sft|eval)\s+\S*?{file}"


def find_kind(file: pathlib.Path, cfg: ExperimentConfig) -> tuple[Kind, str]:
    """(which command a module is for, how that is known): its docstring's own command, a get_config(stage=...), else what it sets."""
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    if found := re.search(_COMMAND.format(file=re.escape(file.name)), doc):
        return found[1], "from the command in the module's docstring"  # type: ignore[return-value]
    if takes_stage(file):
        return "sft", "get_config takes a stage"
    if cfg.sft != SftConfig() and cfg.algo == AlgoConfig() and cfg.train.prompts_per_step == TrainConfig().prompts_per_step:
        return "sft", "it sets `sft` and nothing of reinforcement learning; --kind chooses another"
    return "train", "its docstring has no command; --kind chooses another"


def takes_stage(file: pathlib.Path) -> bool:
    """Whether a module sets the stages of Latent-SFT apart."""
    with importable(file.resolve()):
        return "stage" in inspect.signature(run_file(file.resolve()).get_config).parameters


def _require(cfg: ExperimentConfig, devices: int, kind: Kind) -> None:
    if problems := validate(cfg, device_count=devices, kind=kind):
        raise UserError("\n  ".join([f"{len(problems)} problem(s) for `{kind}` on {devices} device(s):", *problems]))


def prepared(cfg: ExperimentConfig, devices: int, kind: Kind) -> tuple[ExperimentConfig, TextTokenizer]:
    """The config with what depends on the tokenizer, valid. Errors: UserError listing every problem of the settings, or of the tokenizer."""
    _require(cfg, devices, kind)
    tokenizer = load_tokenizer(cfg.data)
    cfg = resolve(cfg, tokenizer)
    cfg = settled(cfg) if kind == "eval" else cfg
    _require(cfg, devices, kind)
    return cfg, tokenizer


def weights(cfg: ExperimentConfig, tokenizer: TextTokenizer, workdir: Place | None, kind: Kind) -> str:
    """Which weights the command would take, in words. Errors: UserError when they are not there or are another model's, or the workdir another run's."""
    if workdir is not None and (workdir / "checkpoints").is_dir():
        check_source(workdir, cfg.model, tokenizer.vocabulary)
        if kind != "eval":
            check_resume(saved_config(workdir), cfg)
        return f"weights: step {saved_step(workdir)} of {workdir}"
    if workdir is not None and kind == "eval":
        raise UserError(f"--workdir {workdir}: no checkpoints there; give the workdir of a run that saved one")
    if cfg.train.init_from:
        check_source(cfg.train.init_from, cfg.model, tokenizer.vocabulary)
        step = saved_step(cfg.train.init_from, best=cfg.train.init_best)
        return f"weights: step {step} of train.init_from={cfg.train.init_from}"
    return "weights: random (train.init_from is empty)" if kind != "eval" else "weights: of the --workdir that eval will be given"


def data(cfg: ExperimentConfig, tokenizer: TextTokenizer, devices: int, kind: Kind) -> str:
    """Makes the first batch of everything that the command reads. The first prompt with its target, and what is left out, in words."""
    split = cfg.data.train_split
    if kind == "train":
        stream: Any = prompt_stream(cfg, tokenizer, split, batch=cfg.train.prompts_per_step)
    elif kind == "sft":
        sizes = mesh_sizes(cfg.mesh, devices)
        ways = sizes[0] * sizes[1] if sizes else 1
        stream = sft_stream(cfg, tokenizer, split, batch=cfg.sft.batch_size, ways=ways)
        heldout_batches(cfg, tokenizer, ways)
    else:
        split = cfg.data.eval_split
        stream = prompt_stream(cfg, tokenizer, split, batch=cfg.evaluation.batch, shuffle=False)
    next(stream)
    said = describe_stream(stream, tokenizer)
    if kind != "eval" and cfg.evaluation.every:
        own = settled(cfg)
        found = prompt_batches(own, tokenizer, cfg.data.eval_split, batch=cfg.evaluation.batch, limit=cfg.evaluation.problems)
        said += f"\nevaluation: {sum(int(real.sum()) for _, _, real in found)} problems of split {cfg.data.eval_split}"
    return said


def report(cfg: ExperimentConfig, tokenizer: TextTokenizer, workdir: Place | None, devices: int, kind: Kind, *, fast: bool) -> str:
    """All of it as text. cfg: as `prepared` returns it. fast: without the data."""
    parts = [describe_think_tokens(cfg, tokenizer), f"vocabulary: {tokenizer.vocab_size} ids, model.vocab_size={cfg.model.vocab_size}"]
    parts.append(weights(cfg, tokenizer, workdir, kind))
    return "\n".join([*parts, "data: not read (--fast)" if fast else data(cfg, tokenizer, devices, kind)])
