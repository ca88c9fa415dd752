"""What every run needs before its first step: resolved config, mesh, parameters, checkpoints, writers. Priority of initial parameters:
1. the newest checkpoint of the workdir (when cfg.checkpoint.resume), 2. cfg.train.init_from, 3. random weights."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from lgrpo.algos.advantages import find_advantage
from lgrpo.algos.stage1 import STAGES, encoder_from, stage1_specs
from lgrpo.config import ExperimentConfig, LoraConfig, ModelConfig
from lgrpo.config.laws import law_name
from lgrpo.config.objects import file_digest
from lgrpo.config.overrides import leaves_with_bounds, to_json
from lgrpo.config.reads import Reads, Wants
from lgrpo.config.validate import require_valid
from lgrpo.data.prompts import TextTokenizer, describe_think_tokens, load_tokenizer, resolve
from lgrpo.errors import UserError
from lgrpo.keys import Stream, key_for
from lgrpo.models.decoder import compute_params
from lgrpo.models.lora import adapter_specs
from lgrpo.models.spec import largest_array, param_shardings, param_specs, spec_abstract, spec_init, spec_shardings
from lgrpo.rewards.reward import find_reward
from lgrpo.runs import multihost, storage
from lgrpo.runs.checkpoint import Checkpoints, Restored, check_source, has_encoder, load_params, write_config
from lgrpo.runs.compiling import CompileClock
from lgrpo.runs.interrupt import EXIT_PREEMPTED
from lgrpo.runs.lock import Lock
from lgrpo.runs.metrics import MetricsWriter
from lgrpo.runs.precision import settle_for_run
from lgrpo.runs.storage import Place
from lgrpo.runs.versions import source_digest, versions
from lgrpo.sharding import ROLLOUT_RULES, make_mesh, replicated
from lgrpo.train.compute import Compute
from lgrpo.train.samples import SampleTable
from lgrpo.train.steps.update import init_state, lora_of, merged_weights
from lgrpo.types import Params, TrainState


@dataclasses.dataclass
class Session:
    """A run that is ready to start. `restored` is None for a fresh one."""

    cfg: ExperimentConfig
    workdir: Place
    tokenizer: TextTokenizer
    mesh: Mesh
    state: TrainState
    checkpoints: Checkpoints
    restored: Restored | None
    writer: MetricsWriter
    clock: CompileClock
    lora: LoraConfig
    """Of what is trained; rank 0: no adapters."""
    lock: Lock
    compute: Compute
    samples: SampleTable
    held: bool = False
    """A checkpoint was due inside a streak of skipped updates, and waits for its end."""
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
        """What a checkpoint keeps besides arrays: seconds spent on the run so far, over all its restarts, the vocabulary and the scale of adapters."""
        before = self.restored.extra["seconds"] if self.restored else 0.0
        back = self.restored.extra.get("rollback") if self.restored else None
        if self.restored and self.restored.step == self.cfg.checkpoint.rollback:
            back = {"step": self.restored.step, "lr": self.cfg.optim.lr}
        extra = {"seconds": before + time.perf_counter() - self.opened, "vocabulary": self.tokenizer.vocabulary}
        extra |= {"spent": self.compute.totals()}
        extra |= {"rollback": back} if back else {}
        return extra | ({"adapter_scale": self.lora.alpha / self.lora.rank} if self.lora.rank else {})

    def save(self, done: int, state: TrainState, data: dict[str, Any], buffer: Any, extra: dict[str, Any], metric: float | None) -> None:
        """Under `done` finished steps. Inside a streak of skipped updates nothing is saved, as what led to it may be in the weights already;
        only the last step is, beside all that was there before."""
        streak = int(state.nonfinite) > 0
        if streak and done != self.cfg.train.num_steps:
            self.held = True
            return
        self.lock.require()
        self.writer.flush()  # the lines before a checkpoint do not come again
        self.checkpoints.save(done, state=state, data=data, buffer=buffer, cfg=self.cfg, extra=extra, metric=metric, prune=not streak)
        if jax.default_backend() == "cpu":  # an update beside the save would hold the state twice, and have no processor of its own
            self.checkpoints.wait()
        self.held = False

    def close(self) -> None:
        """Waits for pending saves, closes the writers and lets go of the workdir."""
        try:
            self.checkpoints.close()
        finally:
            failed = sys.exception() is not None
            try:
                self.writer.close()
            except UserError as error:
                if not failed:
                    raise
                multihost.say(f"warning: {error}")
            finally:
                self.clock.close()
                self.lock.release()

    def leave(self, code: int) -> int:
        """After close: says on the last line where a run that was stopped goes on. Returns the exit code."""
        if code == EXIT_PREEMPTED:
            step = self.checkpoints.latest()
            saved = "nothing saved yet" if step is None else f"saved step {step}"
            why = "; the steps since then were inside a streak of skipped updates" if self.held else ""
            multihost.say(f"{saved}{why}; run the same command again")
        return code


def prepare(cfg: ExperimentConfig, workdir: Place | None = None, *, kind: str) -> tuple[ExperimentConfig, TextTokenizer]:
    """Fills in what depends on the machine, or on the run in workdir, and on the tokenizer, and checks the whole config. Errors: UserError listing every
    problem."""
    cfg, chosen = settle_for_run(cfg, workdir)
    if chosen:
        multihost.say(chosen)
    tokenizer = load_tokenizer(cfg.data)
    cfg = resolve(cfg, tokenizer)
    multihost.say(describe_think_tokens(cfg, tokenizer))
    require_valid(cfg, device_count=jax.device_count(), kind=kind)
    if kind == "train":
        own_functions(cfg)
    _agree(cfg, tokenizer)
    return cfg, tokenizer


def own_functions(cfg: ExperimentConfig) -> None:
    """That the functions are there which the config names, before anything is built. Errors: UserError."""
    find_reward(cfg.data.reward)
    if cfg.algo.advantage != "group":
        find_advantage(cfg.algo.advantage)


def _agree(cfg: ExperimentConfig, tokenizer: TextTokenizer) -> None:
    """That every process is about to compute the same. Errors: UserError naming what differs, and where."""
    if not multihost.several():
        return
    where = ("data.data_dir", "train.compilation_cache")  # a host's own folders; what they hold is compared by content
    facts = {path: repr(value) for path, value, _ in leaves_with_bounds(cfg) if path not in where}
    facts |= {"the source of lgrpo": source_digest(), "the tokenizer": tokenizer.vocabulary}
    own = {"data.reward": cfg.data.reward, "algo.advantage": cfg.algo.advantage, "rollout.latent.law": law_name(cfg.rollout.latent.law)}
    facts |= {f"the file of {path}": file_digest(name) for path, name in own.items()}
    facts |= {f"the version of {name}": version for name, version in versions().items() if name != "git"}
    multihost.agree_on(facts, "settings", cfg.train.start_timeout)


def agree_on_records(fingerprint: str, cfg: ExperimentConfig) -> None:
    """That every process trains on the same tokenised records (Stream.fingerprint). Errors: UserError."""
    multihost.agree_on({"the tokenised records": fingerprint}, "records", cfg.train.start_timeout)


def trained_specs(cfg: ExperimentConfig, *, rl: bool) -> dict[str, Any]:
    """Spec tree of everything that is in the state's parameters: the policy; in stage 1 encoder and decoder; with adapters, base and adapters."""
    specs = stage1_specs(cfg.model) if not rl and cfg.sft.stage in STAGES else param_specs(cfg.model)
    rank = lora_of(cfg, rl=rl).rank
    return {"base": specs, "adapters": adapter_specs(specs, rank)} if rank else specs


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
        return load_params(cfg.train.init_from, target, best=cfg.train.init_best)
    return _random_policy(cfg.model, mesh)(key_for(cfg.seed, 0, Stream.INIT))


# Programs of a run's start, each once in a process whatever the seed: several runs may share one.


@functools.cache
def _random_policy(model: ModelConfig, mesh: Mesh) -> Callable[[jax.Array], Params]:
    specs = param_specs(model)
    return jax.jit(lambda key: spec_init(specs, model, key), out_shardings=spec_shardings(specs, mesh))


@functools.cache
def _encoder_and_decoder(model: ModelConfig, mesh: Mesh) -> Callable[[Params, jax.Array], Params]:
    specs = stage1_specs(model)
    compress = {"compress": specs["encoder"]["compress"]}

    def both(policy: Params, key: jax.Array) -> Params:
        return {"encoder": encoder_from(policy, spec_init(compress, model, key)["compress"]), "decoder": policy}

    return jax.jit(both, out_shardings=spec_shardings(specs, mesh), donate_argnums=0)


@functools.cache
def _random_adapters(model: ModelConfig, rank: int, stage1: bool, mesh: Mesh) -> Callable[[jax.Array], Params]:
    specs = adapter_specs(stage1_specs(model) if stage1 else param_specs(model), rank)
    return jax.jit(lambda key: spec_init(specs, model, key), out_shardings=spec_shardings(specs, mesh))


@functools.cache
def _fresh_state(view: Reads, mesh: Mesh, rl: bool) -> Callable[[Params], TrainState]:
    return jax.jit(lambda params: init_state(params, view, rl=rl), out_shardings=state_shardings(view, mesh, rl=rl), donate_argnums=0)


_STATE = Wants(("model", "optim", "sft.stage", "sft.lora", "algo.lora"), unread=("optim.lr", "optim.clip_norm"))


def fresh_state(cfg: ExperimentConfig, mesh: Mesh, *, rl: bool) -> TrainState:
    """State of a new run around fresh_params."""
    # The rates play no part in an empty state, of the KL's weight only whether there is one.
    facts = {"optim.lr": 1.0, "optim.clip_norm": 1.0, "algo.kl_coef": float(cfg.algo.kl_coef > 0)}
    return _fresh_state(_STATE.of(cfg, **facts), mesh, rl)(fresh_params(cfg, mesh, rl=rl))


def _stage1_start(cfg: ExperimentConfig, mesh: Mesh) -> Params:
    """Encoder and decoder: those of an earlier phase, else two copies of a policy."""
    specs = stage1_specs(cfg.model)
    shardings = spec_shardings(specs, mesh)
    source = cfg.train.init_from
    if source and has_encoder(source):
        return load_params(source, spec_abstract(specs, cfg.model, shardings), best=cfg.train.init_best)
    key = jax.random.fold_in(key_for(cfg.seed, 0, Stream.INIT), 1)  # apart from the keys of the policy's tensors
    return _encoder_and_decoder(cfg.model, mesh)(_policy_start(cfg, mesh), key)


def fresh_params(cfg: ExperimentConfig, mesh: Mesh, *, rl: bool) -> Params:
    """Parameters of a new run, placed, in the structure of trained_specs. Adapters start as no change."""
    start = _stage1_start(cfg, mesh) if not rl and cfg.sft.stage in STAGES else _policy_start(cfg, mesh)
    if not (rank := lora_of(cfg, rl=rl).rank):
        return start
    key = jax.random.fold_in(key_for(cfg.seed, 0, Stream.INIT), 2)
    return {"base": start, "adapters": _random_adapters(cfg.model, rank, not rl and cfg.sft.stage in STAGES, mesh)(key)}


def publish(params: Params, cfg: ExperimentConfig, mesh: Mesh) -> Params:
    """Weights for the rollout: adapters merged, in the compute type, gathered over fsdp, once per RL step. A no-op where nothing changes."""
    target = param_shardings(cfg.model, mesh, ROLLOUT_RULES)
    if "adapters" not in params and jnp.dtype(cfg.model.dtype) == jnp.dtype(cfg.model.param_dtype):
        return jax.device_put(params, target)
    return _publisher(cfg.model, cfg.algo.lora if "adapters" in params else LoraConfig(), mesh)(params)


@functools.cache
def _publisher(model: ModelConfig, lora: LoraConfig, mesh: Mesh) -> Callable[[Params], Params]:
    """One program for all steps of a run."""
    target = param_shardings(model, mesh, ROLLOUT_RULES)
    return jax.jit(lambda params: compute_params(merged_weights(params, lora), model), out_shardings=target)


def open_session(cfg: ExperimentConfig, workdir: Place, *, rl: bool, buffer: Callable[[ExperimentConfig], Any] = lambda _: None) -> Session:
    """Resumes the workdir or starts in it. buffer: makes the empty dynamic-sampling buffer of a resolved config, the target of its restore.

    Errors: UserError for an invalid config, a workdir of another config, initial parameters that do not fit.
    """
    cfg, tokenizer = prepare(cfg, workdir, kind="train" if rl else "sft")
    lock = _own(workdir)
    try:
        return _open(cfg, tokenizer, workdir, lock, rl=rl, buffer=buffer)
    except BaseException:
        lock.release()
        raise


def _own(workdir: Place) -> Lock:
    """The workdir, made where it is missing, for this run alone. Errors: UserError."""
    try:
        if not storage.remote(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        return Lock(workdir)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--workdir {workdir}: {reason}; give a folder that can be made and written") from error


def _open(
    cfg: ExperimentConfig,
    tokenizer: TextTokenizer,
    workdir: Place,
    lock: Lock,
    *,
    rl: bool,
    buffer: Callable[[ExperimentConfig], Any],
) -> Session:
    mesh = make_mesh(cfg.mesh)
    checkpoints = Checkpoints(workdir, cfg.checkpoint, largest_array(trained_specs(cfg, rl=rl), cfg.model))
    restored, first, back = None, {}, cfg.checkpoint.rollback
    went_back = back is not None and checkpoints.roll_back(back, cfg.optim.lr)
    multihost.agree_on({"the newest step in --workdir": str(checkpoints.latest())}, "checkpoints", cfg.train.start_timeout)
    if checkpoints.latest() is not None:
        free = ("optim.lr",) if went_back else ()
        target = abstract_state(cfg, mesh, rl=rl)
        restored = checkpoints.restore(target, buffer(cfg), cfg, vocabulary=tokenizer.vocabulary, may_change=free)
        multihost.say(f"resuming {workdir} at step {restored.step}")
        first = {"run/rollback": float(back)} if went_back else {}
        state = restored.state
    else:
        if cfg.train.init_from:
            check_source(cfg.train.init_from, cfg.model, tokenizer.vocabulary)
        state = fresh_state(cfg, mesh, rl=rl)
    write_config(workdir, cfg)
    # The line of a step whose evaluation is to be repeated is written again too.
    written = restored.step - ("pending" in restored.extra) if restored else 0
    clock = CompileClock()
    writer = MetricsWriter(workdir, cfg.logging, written, clock, first, cfg.name, to_json(cfg))
    compute = Compute(restored.extra.get("spent", {}) if restored else {})
    lora, samples = lora_of(cfg, rl=rl), SampleTable(cfg, tokenizer)
    return Session(cfg, workdir, tokenizer, mesh, state, checkpoints, restored, writer, clock, lora, lock, compute, samples)
