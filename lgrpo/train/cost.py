"""What the programs of an experiment do on each device, from their compiled text: python -m lgrpo check EXPERIMENT --cost --target v5e:2x4.

Per phase: operations of products, bytes of memory, bytes over the links between chips, each with the time it takes at the chip's published rate.
The largest of the three is the least time of the phase if all else were hidden behind it. Loops count by their trips; a decode loop, which ends with
its longest row, by the most it can run. Nothing is measured here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from lgrpo.config import ExperimentConfig
from lgrpo.latent.replay import replay_logps
from lgrpo.runs.metrics import summary_table
from lgrpo.sharding import batch_ways, make_mesh
from lgrpo.train import compute, hlo, work
from lgrpo.train.memory import abstract_batch, checked, programs
from lgrpo.train.setup import abstract_state
from lgrpo.train.steps.update import merged_weights


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published rates of one chip, per second. links: bytes out of a chip over all its links together, half of the bidirectional figure."""

    flop: float
    memory: float
    links: float


# By JAX's device_kind, bfloat16. Source: docs.cloud.google.com/tpu/docs, pages v5e, v5p and v6e, "key chip specifications".
CHIPS = {
    "TPU v5 lite": Chip(197e12, 819e9, 200e9),
    "TPU v5": Chip(459e12, 2765e9, 600e9),
    "TPU v5p": Chip(459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip(918e12, 1638e9, 400e9),
}


@dataclasses.dataclass
class Cost:
    """Of one call of a program, on one device."""

    flop: float = 0.0
    memory: float = 0.0
    plain: float = 0.0  # bytes sent by collectives that are instructions of their own
    spread: dict[str, float] = dataclasses.field(default_factory=dict)
    """Bytes sent by collectives inside fusions, by channel. One is spread over several: start, work, end; the work may lie in a loop that it runs
    beside, so that the least of them counts."""

    @property
    def sent(self) -> float:
        return self.plain + sum(self.spread.values())

    def add(self, other: Cost, times: float = 1.0) -> None:
        self.flop += times * other.flop
        self.memory += times * other.memory
        self.plain += times * other.plain
        for name, sent in other.spread.items():
            self.spread[name] = min(self.spread.get(name, math.inf), times * sent)

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Least time for each of the three."""
        return {"compute": self.flop / chip.flop, "memory": self.memory / chip.memory, "network": self.sent / chip.links}


def _own(module: hlo.Module, where: hlo.Computation, found: hlo.Instruction) -> Cost:
    """One instruction, without the computations that it calls."""
    cost = Cost(work.flop(module, where, found), work.memory(module, where, found))
    if exchange := work.collective(module, found):
        cost.plain = exchange.sent
    for _, inner in hlo.inside(module, found):
        if exchange := work.collective(module, inner):
            cost.spread[exchange.channel] = exchange.sent
    return cost


def tally(module: hlo.Module, computation: hlo.Computation | None = None, *, dearest: bool = False) -> Cost:
    """Of a computation (None: the program). dearest: of alternatives the one with most bytes, else the one with least."""
    computation = computation or module.entry
    total = Cost()
    for found in computation.instructions.values():
        total.add(_own(module, computation, found))
        if found.op == "while":
            trips = hlo.trips(module, computation, found)
            total.add(tally(module, module.called(found, "body"), dearest=dearest), trips)
            total.add(tally(module, module.called(found, "condition"), dearest=dearest), trips + 1)
        elif found.op == "conditional":
            options = [tally(module, branch, dearest=dearest) for branch in hlo.branches(module, found)]
            total.add((max if dearest else min)(options, key=lambda option: option.memory))
        elif found.op in ("call", "async-start"):
            total.add(tally(module, module.called(found, "to_apply", "calls"), dearest=dearest))
    return total


def _cache_bytes(cfg: ExperimentConfig, ways: int, tensor: int) -> float:
    """Keys and values that a whole rollout must read and write on one device: prompts once per group and step, completions up to each step."""
    m, c = cfg.model, cfg.rollout
    size = jax.numpy.dtype(m.dtype if c.kv_dtype == "compute" else c.kv_dtype).itemsize
    column = 2 * m.n_layers * (m.n_kv_heads // tensor) * m.head_dim * size
    groups, steps = cfg.train.prompts_per_step / ways, c.max_new_tokens - 1
    prompts = groups * cfg.data.max_prompt * (steps + 1)
    own = groups * c.group_size * (steps * (steps - 1) / 2 + steps)
    return column * (prompts + own)


def needed_rollout(cfg: ExperimentConfig, mesh: Any) -> float:
    """Bytes that a rollout of full length must move on one device: at every step each weight once, the cache, and logits written and read once."""
    m, c, tensor, ways = cfg.model, cfg.rollout, mesh.shape["tensor"], batch_ways(mesh)
    blocks = m.n_layers * (m.d_model * m.head_dim * 2 * (m.n_heads + m.n_kv_heads) + 3 * m.d_model * m.d_ff)
    weights = (blocks + m.d_model * m.vocab_size) * jax.numpy.dtype(m.dtype).itemsize / tensor
    logits = cfg.train.prompts_per_step * c.group_size / ways * m.vocab_size / tensor * 4 * 2
    return c.max_new_tokens * (weights + logits) + _cache_bytes(cfg, ways, tensor)


def needed_update(cfg: ExperimentConfig, mesh: Any) -> float:
    """Operations per device that an update needs: forward, and backward at twice that; for a frozen output table at once it. No recomputation."""
    state, batch = abstract_state(cfg, mesh, rl=True), abstract_batch(cfg, mesh)
    weights = jax.eval_shape(lambda p: merged_weights(p, cfg.algo.lora), state.params)
    forward = compute.count(jax.jit(lambda w, b: replay_logps(w, b.prompts, b.rollout, cfg=cfg)).trace(weights, batch).jaxpr.jaxpr).fixed
    table = 2.0 * math.prod(batch.advantages.shape) * cfg.model.d_model * cfg.model.vocab_size
    frozen = cfg.optim.freeze_embed if cfg.model.tie_embeddings else cfg.optim.freeze_unembed
    total = 3 * forward - (table if frozen or cfg.algo.lora.rank else 0)
    return (total + (forward if cfg.algo.kl_coef > 0 else 0)) / mesh.size


def costs(cfg: ExperimentConfig, devices: list[jax.Device], *, rl: bool) -> dict[str, tuple[Cost, Cost]]:
    """By phase, compiled for `devices`: with the cheaper side of every alternative, and with the dearer. cfg and errors: as for memory.programs."""
    mesh, found = make_mesh(cfg.mesh, devices), {}
    for program in programs(cfg, mesh, rl=rl):
        with jax.set_mesh(mesh):
            module = hlo.parse(program.lower().compile().as_text())
        found[program.name] = tally(module), tally(module, dearest=True)
    return found


def _row(name: str, cost: Cost, chip: Chip | None) -> list[str]:
    amounts = [f"{cost.flop / 1e12:,.2f}", f"{cost.memory / 1e9:,.1f}", f"{cost.sent / 1e9:,.2f}"]
    if chip is None:
        return [name, *amounts]
    seconds = cost.seconds(chip)
    limit = max(seconds, key=lambda which: seconds[which])
    return [name, *amounts, *(f"{s:.3f}" for s in seconds.values()), limit]


def _phase_name(name: str, cfg: ExperimentConfig) -> str:
    if name == "rollout":
        return f"rollout, {cfg.rollout.max_new_tokens} steps"
    return name


def cost_table(cfg: ExperimentConfig, devices: list[jax.Device], *, rl: bool) -> str:
    """What `check --cost` prints. Errors: as memory.memory_table."""
    cfg = checked(cfg, devices, rl=rl)
    mesh, kind = make_mesh(cfg.mesh, devices), devices[0].device_kind
    found, chip = costs(cfg, devices, rl=rl), CHIPS.get(kind)
    columns = ["phase", "TFLOP", "memory GB", "sent GB"] + (["compute s", "memory s", "network s", "limit"] if chip else [])
    text = [f"per device and step, compiled for {len(devices)} x {kind}; loops by their trips, decode loops by the most they can run"]
    text.append(summary_table([_row(_phase_name(name, cfg), cost, chip) for name, (cost, _) in found.items()], columns))
    if rl:
        need = needed_rollout(cfg, mesh)
        usual, most = (cost.memory / need for cost in found["rollout"])
        text.append(f"rollout: {need / 1e9:,.1f} GB for weights, cache and one pass over the logits; moved {usual:.2f} times that")
        text.append(f"where every alternative is the dearer one: {most:.2f} times")
    if rl:
        with jax.set_mesh(mesh):
            need = needed_update(cfg, mesh)
        done = found["update"][0].flop / need
        text.append(f"update: {need / 1e12:,.2f} TFLOP without recomputation; done {done:.2f} times that")
    if chip is None:
        text.append(f"no published rates at hand for {kind}: no seconds; see --target")
    else:
        shares = {name: cost.seconds(chip) for name, (cost, _) in found.items()}
        text += [f"{name}: network {s['network'] / sum(s.values()):.0%} of the three together" for name, s in shares.items()]
    return "\n".join(text)
