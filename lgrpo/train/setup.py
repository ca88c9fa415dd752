"""What every run needs before its first step: resolved config, mesh, parameters, checkpoints, writers. Priority of initial parameters:
1. the newest checkpoint of the workdir (when cfg.checkpoint.resume), 2. cfg.train.init_from, 3. random weights."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from lgrpo.algos.stage1 import STAGES, encoder_from, stage1_specs
from lgrpo.config import ExperimentConfig
from lgrpo.config.validate import require_valid
from lgrpo.data.prompts import TextTokenizer, describe_think_tokens, load_tokenizer, resolve
from lgrpo.errors import UserError
from lgrpo.keys import Stream, key_for
from lgrpo.models.decoder import compute_params
from lgrpo.models.lora import adapter_specs
from lgrpo.models.spec import param_shardings, param_specs, spec_abstract, spec_init, spec_shardings
from lgrpo.runs import multihost
from lgrpo.runs.checkpoint import Checkpoints, Restored, check_source, has_encoder, load_params, write_config
from lgrpo.runs.compiling import CompileClock
from lgrpo.runs.metrics import MetricsWriter
from lgrpo.sharding import ROLLOUT_RULES, make_mesh, replicated
from lgrpo.train.steps.update import init_state
from lgrpo.types import Params, TrainState


@dataclasses.dataclass
class Session:
    """A run that is ready to start. `restored` is None for a fresh one."""

    cfg: ExperimentConfig
    workdir: pathlib.Path
    tokenizer: TextTokenizer
    mesh: Mesh
    state: TrainState
    checkpoints: Checkpoints
    restored: Restored | None
    writer: MetricsWriter
    clock: CompileClock
    opened: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def start(self) -> int:
        """Steps already done."""
        return self.restored.step if self.restored else 0

    @property
    def pending(self) -> dict[str, float] | None:
        """Metrics of the last step when the run was stopped before that step's evaluation was complete: it comes first."""
        return self.restored.extra.get("pending") if self.restored else None

    def extra(self) -> dict[str, Any]:
        """What a checkpoint keeps besides arrays: seconds spent on the run so far, over all its restarts, and the vocabulary."""
        before = self.restored.extra["seconds"] if self.restored else 0.0
        return {"seconds": before + time.perf_counter() - self.opened, "vocabulary": self.tokenizer.vocabulary}

    def close(self) -> None:
        """Waits for pending saves and closes the writers."""
        self.checkpoints.close()
        self.writer.close()
        self.clock.close()


def prepare(cfg: ExperimentConfig, *, kind: str) -> tuple[ExperimentConfig, TextTokenizer]:
    """Fills in what depends on the tokenizer and checks the whole config. Errors: UserError listing every problem."""
    tokenizer = load_tokenizer(cfg.data)
    cfg = resolve(cfg, tokenizer)
    multihost.say(describe_think_tokens(cfg, tokenizer))
    require_valid(cfg, device_count=jax.device_count(), kind=kind)
    if multihost.several() and cfg.rollout.decode == "refill":
        raise UserError("rollout.decode=refill: its host side sees one process only; use loop where there are several")
    return cfg, tokenizer


def trained_specs(cfg: ExperimentConfig, *, rl: bool) -> dict[str, Any]:
    """Spec tree of everything that is in the state's parameters: the policy; in stage 1 encoder and decoder; with adapters, base and adapters."""
    specs = param_specs(cfg.model)
    if rl:
        return specs
    if cfg.sft.stage in STAGES:
        specs = stage1_specs(cfg.model)
    return {"base": specs, "adapters": adapter_specs(specs, cfg.sft.lora.rank)} if cfg.sft.lora.rank else specs


def state_shardings(cfg: ExperimentConfig, mesh: Mesh, *, rl: bool) -> Any:
    """NamedShardings with the structure of TrainState: moments and reference are placed like their parameters, scalars everywhere."""
    keys = jax.tree_util
    specs = trained_specs(cfg, rl=rl)
    by_path = {keys.keystr(path): sharding for path, sharding in keys.tree_leaves_with_path(spec_shardings(specs, mesh))}
    state = jax.eval_shape(lambda p: init_state(p, cfg, rl=rl), spec_abstract(specs, cfg.model))

    def place(path: tuple[Any, ...], _: Any) -> NamedSharding:
        # A moment's path ends in that of its parameter: .opt_state.inner_states['train'].inner_state[1][0].mu['blocks']['wq']
        tails = (keys.keystr(path[start:]) for start in range(len(path)))
        return next((by_path[tail] for tail in tails if tail in by_path), replicated(mesh))

    return keys.tree_map_with_path(place, state)


def abstract_state(cfg: ExperimentConfig, mesh: Mesh, *, rl: bool) -> Any:
    """The TrainState as shapes with their placement; allocates nothing. Errors: ValueError naming a tensor whose axis does not divide."""
    state = jax.eval_shape(lambda p: init_state(p, cfg, rl=rl), spec_abstract(trained_specs(cfg, rl=rl), cfg.model))
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, state_shardings(cfg, mesh, rl=rl))


def _policy_start(cfg: ExperimentConfig, mesh: Mesh) -> Params:
    """A policy from cfg.train.init_from, else random, placed."""
    specs = param_specs(cfg.model)
    shardings = spec_shardings(specs, mesh)
    if cfg.train.init_from:
        target = spec_abstract(specs, cfg.model, shardings)
        return load_params(pathlib.Path(cfg.train.init_from), target, best=cfg.train.init_best)
    key = key_for(cfg.seed, 0, Stream.INIT)
    return jax.jit(lambda: spec_init(specs, cfg.model, key), out_shardings=shardings)()


def _stage1_start(cfg: ExperimentConfig, mesh: Mesh) -> Params:
    """Encoder and decoder: those of an earlier phase, else two copies of a policy."""
    specs = stage1_specs(cfg.model)
    shardings = spec_shardings(specs, mesh)
    source = cfg.train.init_from
    if source and has_encoder(source):
        return load_params(pathlib.Path(source), spec_abstract(specs, cfg.model, shardings), best=cfg.train.init_best)
    compress = {"compress": specs["encoder"]["compress"]}
    key = jax.random.fold_in(key_for(cfg.seed, 0, Stream.INIT), 1)  # apart from the keys of the policy's tensors

    def both(policy: Params) -> Params:
        return {"encoder": encoder_from(policy, spec_init(compress, cfg.model, key)["compress"]), "decoder": policy}

    return jax.jit(both, out_shardings=shardings)(_policy_start(cfg, mesh))


def fresh_params(cfg: ExperimentConfig, mesh: Mesh, *, rl: bool) -> Params:
    """Parameters of a new run, placed, in the structure of trained_specs. Adapters start as no change."""
    if rl or not (cfg.sft.lora.rank or cfg.sft.stage in STAGES):
        return _policy_start(cfg, mesh)
    start = _stage1_start(cfg, mesh) if cfg.sft.stage in STAGES else _policy_start(cfg, mesh)
    if not cfg.sft.lora.rank:
        return start
    specs = trained_specs(cfg, rl=rl)["adapters"]
    key = jax.random.fold_in(key_for(cfg.seed, 0, Stream.INIT), 2)
    return {"base": start, "adapters": jax.jit(lambda: spec_init(specs, cfg.model, key), out_shardings=spec_shardings(specs, mesh))()}


def publish(params: Params, cfg: ExperimentConfig, mesh: Mesh) -> Params:
    """Weights for the rollout: in the compute type, gathered over fsdp, once per RL step. A no-op where nothing changes."""
    target = param_shardings(cfg.model, mesh, ROLLOUT_RULES)
    if jnp.dtype(cfg.model.dtype) == jnp.dtype(cfg.model.param_dtype):
        return jax.device_put(params, target)
    return jax.jit(lambda p: compute_params(p, cfg.model), out_shardings=target)(params)


def open_session(
    cfg: ExperimentConfig, workdir: pathlib.Path, *, rl: bool, buffer: Callable[[ExperimentConfig], Any] = lambda _: None
) -> Session:
    """Resumes the workdir or starts in it. buffer: makes the empty dynamic-sampling buffer of a resolved config, the target of its restore.

    Errors: UserError for an invalid config, a workdir of another config, initial parameters that do not fit.
    """
    cfg, tokenizer = prepare(cfg, kind="train" if rl else "sft")
    mesh = make_mesh(cfg.mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, cfg.checkpoint)
    restored = None
    if checkpoints.latest() is not None:
        restored = checkpoints.restore(abstract_state(cfg, mesh, rl=rl), buffer(cfg), cfg, vocabulary=tokenizer.vocabulary)
        multihost.say(f"resuming {workdir} at step {restored.step}")
        state = restored.state
    else:
        if cfg.train.init_from:
            check_source(cfg.train.init_from, cfg.model, tokenizer.vocabulary)
        placed = state_shardings(cfg, mesh, rl=rl)
        state = jax.jit(lambda p: init_state(p, cfg, rl=rl), out_shardings=placed)(fresh_params(cfg, mesh, rl=rl))
    write_config(workdir, cfg)
    # The line of a step whose evaluation is to be repeated is written again too.
    written = restored.step - ("pending" in restored.extra) if restored else 0
    clock = CompileClock()
    writer = MetricsWriter(workdir, cfg.logging, resume_step=written, clock=clock)
    return Session(cfg, workdir, tokenizer, mesh, state, checkpoints, restored, writer, clock)
