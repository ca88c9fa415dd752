"""`python -m lgrpo ask`: one problem in, the thoughts of a checkpoint and its answer out, in the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from lgrpo.config import AnswerConfig, ExperimentConfig, MeshConfig
from lgrpo.config.overrides import parse_overrides
from lgrpo.config.validate import require_valid
from lgrpo.data import prompts
from lgrpo.data.prompts import TextTokenizer, load_tokenizer, resolve
from lgrpo.data.sources import Record
from lgrpo.data.tokenise import prompt_texts
from lgrpo.errors import UserError
from lgrpo.keys import Stream, key_for
from lgrpo.models.spec import abstract_params, param_shardings
from lgrpo.report.text import visible_lines
from lgrpo.report.trace import Sample, trace
from lgrpo.report.trace_view import body, console
from lgrpo.runs.checkpoint import check_source, load_weights, saved_config
from lgrpo.runs.storage import PathLike
from lgrpo.sharding import ROLLOUT_RULES, make_mesh
from lgrpo.types import PromptBatch


def one_prompt(cfg: ExperimentConfig, tokenizer: TextTokenizer, question: str) -> PromptBatch:
    """A batch of this question alone, as data.template puts it. Errors: UserError for an empty text and for words that the tokenizer does not know."""
    if not question.strip():
        raise UserError("the question is empty; give a problem as text")
    record = Record(problem=question, cot="", answer="", uid=0)
    ids = tokenizer.encode(prompt_texts(cfg, tokenizer, cfg.data.eval_split, [record])[0])
    if tokenizer.find(prompts.UNK) in ids:
        raise UserError(
            f"the question has text unknown to the {tokenizer.name} tokenizer: {tokenizer.decode(ids)!r}; use words that it has"
        )
    width = max(len(ids), cfg.data.max_prompt)
    tokens = np.full((1, width), prompts.pad_id(cfg.data, tokenizer), np.int32)
    tokens[0, width - len(ids) :] = ids
    return PromptBatch(tokens=tokens, mask=np.arange(width)[None] >= width - len(ids), uid=np.zeros(1, np.int32))


def asked(cfg: ExperimentConfig, samples: int) -> ExperimentConfig:
    """How completions are made: `samples` under the noise of training, or, with 0, one without noise and with a greedy answer."""
    rollout = dataclasses.replace(cfg.rollout, group_size=max(samples, 1))
    if not samples:
        quiet = dataclasses.replace(rollout.latent, noise_scale=0.0)
        greedy = AnswerConfig(sampler="greedy", temperature=rollout.answer.temperature)
        rollout = dataclasses.replace(rollout, latent=quiet, answer=greedy)
    return dataclasses.replace(cfg, rollout=rollout, mesh=MeshConfig(data=1))


def _panel(sample: Sample, gold: str, width: int, noisy: bool) -> Panel:
    verdict = "" if not gold else ", correct" if sample.correct else ", wrong"
    title = f"sample {sample.index}: {len(sample.latents)} latent steps, {sample.finish}{verdict}"
    return Panel(
        Group(*body(sample, width - 4, without=("advantage",) if noisy else ("advantage", "noise", "score-logp"))),
        title=title,
        title_align="left",
    )


def run(
    workdir: PathLike,
    question: str,
    settings: Sequence[str],
    *,
    gold: str = "",
    samples: int = 0,
    best: bool = False,
    out: Console | None = None,
) -> int:
    """Prints what the newest (or best) checkpoint of `workdir` thinks and answers, under its own settings changed by the options `settings`.

    gold: the right answer, for a verdict. Errors: UserError for a workdir without checkpoints, settings of another model, an unreadable question.
    """
    cfg = parse_overrides(saved_config(workdir), settings, prog="python -m lgrpo ask WORKDIR QUESTION")
    tokenizer = load_tokenizer(cfg.data)
    cfg = asked(resolve(cfg, tokenizer), samples)
    require_valid(dataclasses.replace(cfg, evaluation=type(cfg.evaluation)()), device_count=1, kind="eval")
    batch = one_prompt(cfg, tokenizer, question)
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        check_source(workdir, cfg.model, tokenizer.vocabulary)
        target = abstract_params(cfg.model, param_shardings(cfg.model, mesh, ROLLOUT_RULES))
        params, step = load_weights(workdir, target, best=best)
        ((found,), _) = trace(params, batch, [gold], key_for(cfg.seed, 0, Stream.EVALUATION), cfg=cfg, tokenizer=tokenizer)
    out = out or console()
    how = f"{samples} samples under noise" if samples else "no noise, greedy answer"
    out.print(Text(f"{workdir}, step {step}; {how}"), Text(visible_lines(found.prompt), "bold"), sep="\n")
    for sample in found.samples:
        out.print(_panel(sample, gold, out.width, samples > 0))
    return 0
