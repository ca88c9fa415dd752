"""What a reward is told about a completion besides its text."""

from __future__ import annotations

import dataclasses

import numpy as np

from lgrpo.types import Finish, Rollout


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion: the grader's verdict on its text, and how it was sampled."""

    correct: bool
    """The answer equals the gold answer, by data.grader."""
    category: str
    """correct, or why not: a name of lgrpo.rewards.grade.ERRORS."""
    finish: str
    """EOS, LENGTH, FORCED_EXIT or NAN."""
    latent_steps: int
    """Steps that fed a mixture."""
    chain_tokens: int
    """Steps before the end of thinking, latent or not; all of them where it never came."""
    answer_tokens: int
    """Tokens after it, end of sequence included."""
    completion_tokens: int
    """All steps."""
    limit: int
    """rollout.max_new_tokens."""
    forced: bool
    """Thinking was ended by rollout.latent.max_latent."""

    @property
    def truncated(self) -> bool:
        """Cut at the limit."""
        return self.finish == Finish.LENGTH.name


def samples_of(rollout: Rollout, verdicts: list) -> list[Sample]:
    """One for each of the N rows of a rollout on the host. verdicts: of lgrpo.rewards.grade, N of them."""
    names = ("mask", "loss_mask", "is_latent", "finish", "chain_len", "thought")
    host = rollout.replace(**{name: np.asarray(getattr(rollout, name)) for name in names})
    total, latent = host.mask.sum(-1), (host.is_latent & host.mask).sum(-1)
    answer, forced = host.answer_len, host.forced
    return [
        Sample(
            correct=verdict.correct,
            category=verdict.category,
            finish=Finish(int(host.finish[n])).name,
            latent_steps=int(latent[n]),
            chain_tokens=int(host.chain_len[n]),
            answer_tokens=int(answer[n]),
            completion_tokens=int(total[n]),
            limit=host.mask.shape[1],
            forced=bool(forced[n]),
        )
        for n, verdict in enumerate(verdicts)
    ]
