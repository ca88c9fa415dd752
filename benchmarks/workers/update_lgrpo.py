"""Update by lgrpo: value and gradient of the policy loss, no optimizer. args: a Shape, share_prefix, frozen (both tables, as in RL),
tokens (explicit completions), repeats, devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from benchmarks.shapes import shape_of
from benchmarks.timing import Kept, measure
from benchmarks.workers.common import experiment, params_of, prompt_batch, recorded
from lgrpo.algos.policy_loss import policy_loss
from lgrpo.config import MeshConfig
from lgrpo.latent.replay import replay_logps
from lgrpo.models.spec import param_shardings
from lgrpo.sharding import make_mesh, put_batch
from lgrpo.train.optimizer import join, split
from lgrpo.types import Params, PromptBatch, Rollout

# The density of the paper without its score gradient, which changes no forward value: what the references of this workload compute.
DIFF = {"rollout.latent.law.score_gradient": "plain"}


def run(args: dict[str, Any]) -> dict[str, Any]:
    """Seconds of value_and_grad over the whole batch."""
    shape, share = shape_of(args), args["share_prefix"]
    frozen, tokens = args.get("frozen", False), args.get("tokens", False)
    method = ("explicit", {}) if tokens else ("paper", DIFF)
    cfg = experiment(shape, method[0], diff=method[1] | {"optim.freeze_embed": frozen, "optim.freeze_unembed": frozen})
    mesh = make_mesh(MeshConfig())

    def loss(moving: Params, fixed: Params, prompts: PromptBatch, rollout: Rollout, advantages: jax.Array) -> jax.Array:
        logps = replay_logps(join(moving, fixed), prompts, rollout, cfg=cfg, share_prefix=share)
        flat = [x.reshape(-1, shape.new) for x in (logps, rollout.logps, advantages, rollout.loss_mask)]
        return policy_loss(*flat)[0].value()

    @jax.jit
    def update(*batch: Any) -> tuple[jax.Array, jax.Array, Params]:
        value, grads = jax.value_and_grad(loss)(*batch)
        return value, optax.global_norm(grads), grads

    with jax.set_mesh(mesh):
        params = jax.device_put(params_of(shape), param_shardings(cfg.model, mesh))
        batch = put_batch((prompt_batch(shape), *recorded(shape, tokens=tokens)), mesh)
        weights = split(params, cfg.optim)
        work = Kept(lambda: jax.block_until_ready(update(*weights, *batch)))
        found = measure(work, args["repeats"])
    value, norm, _ = work.last
    return found | {
        "tokens": shape.tokens,
        "loss": float(np.asarray(value)),
        "grad_norm": float(np.asarray(norm)),
        "devices": jax.device_count(),
    }
