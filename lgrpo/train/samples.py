"""Tables of sampled completions, for people to read while a run goes on: problem, latents, answer, verdict."""

from __future__ import annotations

from typing import Any

import numpy as np

from lgrpo.config import ExperimentConfig
from lgrpo.data.prompts import TextTokenizer
from lgrpo.rewards.score import completion_texts
from lgrpo.runs import multihost
from lgrpo.types import Finish, PromptBatch, Rollout, Scored

_STEPS, _TOKENS, _CHARACTERS = 24, 3, 600  # shown of a chain of latents, of a latent, of a text


def _token(tokenizer: TextTokenizer, token: int) -> str:
    return tokenizer.token_of(token) or f"#{token}"


def thought(rollout: Rollout, n: int, tokenizer: TextTokenizer) -> str:
    """The thinking of row n in one line: heaviest tokens of each latent with their weights, or the text of an explicit chain."""
    length = int(rollout.chain_len[n])
    if not rollout.is_latent[n].any():
        return tokenizer.decode(rollout.ids[n, :length, 0].tolist())[:_CHARACTERS]
    shown = []
    for ids, weights in zip(rollout.ids[n, : min(length, _STEPS)], rollout.weights[n], strict=False):
        best = np.argsort(-weights, kind="stable")[:_TOKENS]
        shown.append(" ".join(f"{_token(tokenizer, int(ids[k]))}:{weights[k]:.2f}" for k in best))
    return " | ".join([*shown, *(["..."] if length > _STEPS else [])])


class SampleTable:
    """Completions of the first generation of each step that is due (logging.samples_every), before any filter."""

    def __init__(self, cfg: ExperimentConfig, tokenizer: TextTokenizer) -> None:
        self._cfg, self._tokenizer = cfg, tokenizer
        self._rows: list[dict[str, Any]] = []

    def take(self, done: int, prompts: PromptBatch, rollout: Rollout, golds: list[str], scored: Scored) -> None:
        """Makes the table of step `done`. prompts [B, P]; rollout leaves [N, ...], on any devices; of several processes, the main one's rows."""
        every = self._cfg.logging.samples_every
        if not every or done % every or self._rows or not multihost.is_main():
            return
        group, wanted = self._cfg.rollout.group_size, self._cfg.logging.samples
        numbers, own = multihost.own_rows(rollout) if multihost.several() else (np.arange(len(scored.rewards)), rollout)
        numbers = numbers[: wanted * group]
        own = own.replace(**{name: np.asarray(getattr(own, name))[: len(numbers)] for name in own.__dataclass_fields__})
        texts = completion_texts(own, self._tokenizer, self._cfg)
        for n, row in enumerate(numbers.tolist()):
            tokens = np.asarray(prompts.tokens)[row // group][np.asarray(prompts.mask)[row // group]]
            self._rows.append(
                {
                    "prompt": self._tokenizer.decode(tokens.tolist())[-_CHARACTERS:],
                    "gold": golds[row // group],
                    "thought": thought(own, n, self._tokenizer),
                    "answer": (texts[n] or "")[:_CHARACTERS],
                    "reward": float(scored.rewards[row]),
                    "correct": bool(scored.correct[row]),
                    "valid": bool(scored.valid[row]),
                    "finish": Finish(int(own.finish[n])).name,
                    "latent_steps": int(own.is_latent[n].sum()),
                }
            )

    def pop(self) -> list[dict[str, Any]]:
        """The table of the step that is being logged, once; empty when none was due."""
        rows, self._rows = self._rows, []
        return rows
