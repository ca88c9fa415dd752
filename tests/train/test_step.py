"""The jitted updates. Breaks when a bad gradient gets through, a frozen table moves, or micro-batches and updates are weighted wrongly."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import END, REPLAY, VOCAB, change, first_moments, fresh_state, params, prompts, roll, tiny, train_batch

from lgrpo.algos.latent_sft import noisy_labels, superposition_labels
from lgrpo.algos.policy_loss import k3_kl
from lgrpo.models.lora import adapter_specs
from lgrpo.models.spec import param_specs, spec_init
from lgrpo.train.optimizer import learning_rate
from lgrpo.train.steps.rl import group, make_train_batch, train_step
from lgrpo.train.steps.sft import _sft_batch, processed_tokens, sft_step
from lgrpo.train.steps.update import init_state

CFG = tiny(model__n_layers=1, rollout__max_new_tokens=6, rollout__latent__max_latent=2, optim__lr=1e-2, optim__clip_norm=1e9)
CFG = change(CFG, train__diagnostics="off")  # they have tests of their own, and are a quarter of what is compiled


@functools.cache
def batch():
    return jax.device_get(train_batch(CFG))  # NumPy's slices and masks compile nothing


def part(rows):
    return jax.tree.map(lambda x: x[rows], batch())


def step(cfg, data, state=None):
    state, metrics = train_step(fresh_state(cfg) if state is None else state, data, cfg=cfg)
    return jax.device_get(state), {name: float(x) for name, x in metrics.items()}


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


def test_non_finite_gradient_is_skipped_and_counted():
    before = jax.device_get(fresh_state(CFG))
    counted = np.argwhere(np.asarray(batch().loss_mask))[0]
    advantages = batch().advantages.copy()
    advantages[tuple(counted)] = np.nan
    bad = batch().replace(advantages=advantages)
    state, metrics = step(CFG, bad)
    jax.tree.map(np.testing.assert_array_equal, (before.params, before.opt_state), (state.params, state.opt_state))
    assert (state.step, state.nonfinite, state.skipped) == (1, 1, 1) and metrics["grad/nonfinite"] == 1
    state, metrics = step(CFG, bad, state)
    assert (state.step, state.nonfinite, state.skipped) == (2, 2, 2)
    state, metrics = step(CFG, batch(), state)
    assert (state.step, state.nonfinite, state.skipped) == (3, 0, 2) and metrics["grad/norm"] > 0
    assert any((x != y).any() for x, y in zip(jax.tree.leaves(before.params), jax.tree.leaves(state.params), strict=True))
    # a skipped update leaves no trace: the third step equals a first one
    close(step(CFG, batch())[0].params, state.params, atol=0)


@pytest.mark.parametrize("name", ["embed", "unembed"])
def test_frozen_table_does_not_move(name):
    cfg = change(CFG, optim__weight_decay=0.5, **{f"optim__freeze_{name}": True})
    before = jax.device_get(params(cfg.model))
    state, _ = step(cfg, batch())
    np.testing.assert_array_equal(state.params[name], before[name])
    moved = jax.tree_util.tree_map_with_path(lambda p, x, y: (jax.tree_util.keystr(p), bool((x != y).any())), state.params, before)
    still = [path for path, changed in jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, tuple)) if not changed]
    assert still == [f"['{name}']"]
    assert f"['{name}']" not in first_moments(state)  # no moments either


@pytest.mark.parametrize(("family", "more"), [("qwen2", ("bq", "bk", "bv")), ("qwen3", ("q_norm", "k_norm"))])
def test_weight_decay_is_for_matrices(family, more):
    """With nothing to learn only the decay moves weights: matrices shrink by lr * decay, norms and biases stay."""
    cfg = change(CFG, optim__weight_decay=0.5, model__family=family)
    nothing = batch().replace(advantages=np.zeros_like(batch().advantages))
    before = jax.device_get(params(cfg.model))
    before["blocks"] |= {name: before["blocks"][name] + 1.0 for name in more}
    state, metrics = step(cfg, nothing, fresh_state(cfg, before))
    assert metrics["grad/norm"] == 0
    for name in ("attn_norm", "mlp_norm", *more):
        np.testing.assert_array_equal(state.params["blocks"][name], before["blocks"][name])
    np.testing.assert_array_equal(state.params["final_norm"], before["final_norm"])
    for new, old in ((state.params["embed"], before["embed"]), (state.params["blocks"]["wq"], before["blocks"]["wq"])):
        np.testing.assert_allclose(new, old * (1 - 1e-2 * 0.5), rtol=1e-5)


def test_token_mean_over_batch_or_microbatch():
    """batch: gradients of the halves weighted by their tokens; microbatch (official): their plain mean."""
    uneven = batch().replace(loss_mask=batch().loss_mask & (np.arange(4) % 4 > 0)[:, None, None] | (np.arange(6) < 1))
    halves = [jax.tree.map(lambda x, s=s: x[s], uneven) for s in (slice(0, 2), slice(2, 4))]
    counts = np.array([float(half.loss_mask.sum()) for half in halves])
    assert counts[0] != counts[1]
    a, b = (first_moments(step(CFG, half)[0]) for half in halves)
    for mode, weights in (("batch", counts / counts.sum()), ("microbatch", [0.5, 0.5])):
        cfg = change(CFG, algo__loss_mean=mode, train__microbatch=2)
        got = first_moments(step(cfg, uneven)[0])
        close(got, {path: weights[0] * a[path] + weights[1] * b[path] for path in a})


def test_two_updates_equal_two_steps():
    both, metrics = step(change(CFG, train__updates_per_step=2, train__diagnostics="full"), batch())
    middle, first = step(CFG, part(slice(0, 2)))
    last, second = step(CFG, part(slice(2, 4)), middle)
    assert both.step == 1 and last.step == 2
    close(both.params, last.params)
    close(both.opt_state, last.opt_state)
    # the replay gap is that of the first update; maxima are over both
    assert metrics["policy/replay_gap"] < 1e-4 and first["policy/replay_gap"] < 1e-4
    assert second["policy/replay_gap"] > 1e-3
    assert metrics["policy/ratio_max"] == pytest.approx(max(first["policy/ratio_max"], second["policy/ratio_max"]), rel=1e-4)


def test_kl_to_the_frozen_start():
    cfg = change(CFG, algo__kl_coef=0.5)
    assert init_state(params(CFG.model), CFG, rl=True).reference is None
    state, metrics = step(cfg, batch())
    assert metrics["policy/kl_k3"] == pytest.approx(0, abs=1e-6)  # nothing has moved yet, and its gradient is zero there
    close(first_moments(state), first_moments(step(CFG, batch())[0]), atol=1e-4)
    start = jax.device_get(params(cfg.model))
    jax.tree.map(np.testing.assert_array_equal, state.reference, start)
    theirs, ours = (REPLAY(p, batch().prompts, batch().rollout, cfg=cfg) for p in (start, state.params))
    want = float(k3_kl(ours, theirs, batch().loss_mask).value())
    after, metrics = step(cfg, batch(), state)
    assert want > 1e-4 and metrics["policy/kl_k3"] == pytest.approx(want, rel=1e-3)
    jax.tree.map(np.testing.assert_array_equal, after.reference, start)


def test_learning_rate():
    cosine = learning_rate(dataclasses.replace(CFG.optim, lr=1.0, schedule="cosine", warmup=4), 12)
    np.testing.assert_allclose([cosine(t) for t in (0, 1, 3, 4, 8, 12)], [0.25, 0.5, 1, 1, 0.5, 0], atol=1e-6)
    one = learning_rate(dataclasses.replace(CFG.optim, lr=1.0, warmup=1), 12)
    np.testing.assert_allclose([one(t) for t in (0, 1, 2)], 1)
    assert learning_rate(dataclasses.replace(CFG.optim, lr=1.0), 12)(11) == 1


def test_first_update_of_a_warm_up_moves_the_weights():
    cfg = change(CFG, optim__warmup=4, optim__weight_decay=0.0)
    state, metrics = step(cfg, batch())
    assert metrics["optim/lr"] == pytest.approx(1e-2 / 4)
    moved = np.abs(state.params["blocks"]["wq"] - np.asarray(params(cfg.model)["blocks"]["wq"])).max()
    assert moved == pytest.approx(1e-2 / 4, rel=0.05)  # the first step of AdamW is the rate


def supervised():
    """Four records; one has no chain."""
    rng = np.random.default_rng(0)
    chain, answer = rng.integers(4, VOCAB, (4, 4)), rng.integers(4, VOCAB, (4, 2))
    return {
        "prompt_tokens": prompts().tokens,
        "prompt_mask": prompts().mask,
        "uid": prompts().uid,
        "chain_tokens": chain.astype(np.int32),
        "chain_mask": np.arange(4) < np.array([[4], [3], [0], [1]]),
        "answer_tokens": answer.astype(np.int32),
        "answer_mask": np.arange(2) < np.array([[2], [2], [1], [1]]),
    }


SFT = change(CFG, sft__stage="latent", sft__compression=2, sft__label_noise=0.5, data__think_end_id=END)


def supervised_step(cfg, state=None):
    state = init_state(jax.tree.map(jnp.array, params(cfg.model)), cfg, rl=False) if state is None else state
    return jax.device_get(sft_step(state, supervised(), cfg=cfg))


def test_supervised_microbatches_do_not_change_the_update():
    """Cross-entropy and KL have counts of their own; slices of unequal length must still add up to the update of the whole."""
    outs = [supervised_step(change(SFT, train__microbatch=size)) for size in (0, 1)]
    close(first_moments(outs[0][0]), first_moments(outs[1][0]))
    assert outs[0][1]["sft/kl"] > 0 and outs[0][1]["sft/ce"] > 0
    for name in ("sft/ce", "sft/kl", "sft/loss", "grad/norm"):
        assert outs[0][1][name] == pytest.approx(outs[1][1][name], rel=1e-4), name


def test_label_noise_is_redrawn_at_every_step_and_is_that_of_the_step():
    still = change(SFT, optim__lr=1e-30, optim__weight_decay=0.0)
    state, first = supervised_step(still)
    _, second = supervised_step(still, state)
    assert abs(first["sft/kl"] - second["sft/kl"]) > 1e-3, "two steps on one batch and the same weights draw one noise"
    assert supervised_step(still)[1]["sft/kl"] == first["sft/kl"]


def test_supervised_noise_has_the_settings_of_the_config():
    cfg = change(SFT, sft__label_clamp=(-1.0, 1.2), rollout__latent__tau=0.5)
    keys, data = jax.random.split(jax.random.key(0), 4), supervised()
    noise = {"scale": 0.5, "clamp": (-1.0, 1.2), "think_end_id": END, "tau": 0.5, "redraws": cfg.sft.label_redraws}

    @jax.jit
    def wanted(data, keys):
        clean = superposition_labels(data["chain_tokens"], data["chain_mask"], k=4, compression=2, kind="uniform")
        return noisy_labels(clean, keys, **noise)

    want = wanted(data, keys)
    _, got = jax.jit(functools.partial(_sft_batch, cfg=cfg))(data, keys)
    latent = np.asarray(got.mask & got.is_latent)
    np.testing.assert_array_equal(latent.sum(1), [2, 2, 0, 1])
    np.testing.assert_allclose(np.asarray(got.weights)[latent], np.asarray(want.probs)[np.asarray(want.mask)], rtol=1e-6)


@pytest.mark.parametrize(("stage", "count"), [("explicit", 4 + 2), ("latent", 2 + 2)])
def test_processed_tokens_by_hand(stage, count):
    """Prompt, then what the stage thinks in, then the end of thinking and the answer. One record: 4 tokens of chain, 2 of answer."""
    one = jax.tree.map(lambda x: x[:1], supervised())
    assert int(processed_tokens(one, change(SFT, sft__stage=stage))) == prompts().mask[0].sum() + count + 1


@pytest.mark.parametrize("stage", ["encoder", "decoder", "union"])
def test_processed_tokens_of_stage_1_by_hand(stage):
    """Encoder: prompt, chain, one compress token per chunk, end. Decoder: prompt, latents, the chain's later chunks, end, answer."""
    one = jax.tree.map(lambda x: x[:1], supervised())
    prompt = prompts().mask[0].sum()
    assert int(processed_tokens(one, change(SFT, sft__stage=stage))) == (prompt + 4 + 2 + 1) + (prompt + 2 + (4 - 2) + 1 + 2)


@pytest.mark.parametrize("invalid", ["keep", "zero", "exclude"])
def test_which_positions_count(invalid):
    record = group(roll(CFG), 4)
    valid = np.ones((4, 4), bool)
    valid[1, 2] = valid[2, 0] = False
    made = make_train_batch(prompts(), record, np.eye(4, dtype=np.float32), valid, cfg=change(CFG, algo__invalid=invalid))
    want = record.loss_mask & valid[..., None] if invalid == "exclude" else record.loss_mask
    np.testing.assert_array_equal(made.loss_mask, want)
    assert record.loss_mask[1, 2].any() and record.loss_mask[2, 0].any()


def test_gradient_of_the_kl_alone():
    """A policy that has moved, without advantages: the update goes down the KL."""
    cfg = change(CFG, algo__kl_coef=0.5)
    nothing = batch().replace(advantages=np.zeros_like(batch().advantages))
    start = jax.device_get(params(cfg.model))
    moved = jax.tree.map(lambda x: x + 0.05 * np.cos(100 * x), start)

    def kl(weights):
        ours, theirs = (REPLAY(p, nothing.prompts, nothing.rollout, cfg=cfg) for p in (weights, start))
        return k3_kl(ours, theirs, nothing.loss_mask).value()

    value, wanted = jax.jit(jax.value_and_grad(kl))(moved)
    state = fresh_state(cfg, moved).replace(reference=jax.tree.map(jnp.array, start))
    state, metrics = train_step(state, nothing, cfg=cfg)
    assert float(value) > 1e-2 and float(metrics["policy/kl_k3"]) == pytest.approx(float(value), rel=1e-4)
    wanted = {jax.tree_util.keystr(path): 0.5 * np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(wanted)}
    close(first_moments(state), wanted)


def test_learning_rate_that_is_reported_is_that_of_the_last_update():
    cfg = change(CFG, train__updates_per_step=2, optim__warmup=5)
    state, first = step(cfg, batch())
    _, second = step(cfg, batch(), state)
    assert [first["optim/lr"], second["optim/lr"]] == pytest.approx([1e-2 * 2 / 5, 1e-2 * 4 / 5])


def test_donated_state_is_overwritten():
    """The compiler takes every buffer of the state over into the new one: a second copy of weights or moments would cost as much as training."""
    for cfg in (change(CFG, algo__kl_coef=0.1), change(CFG, algo__kl_coef=0.1, algo__lora__rank=2)):
        weights = params(cfg.model)
        if cfg.algo.lora.rank:
            fresh = spec_init(adapter_specs(param_specs(cfg.model), 2), cfg.model, jax.random.key(0))
            weights = {"base": weights, "adapters": fresh}
        state = init_state(jax.tree.map(jnp.array, weights), cfg, rl=True)
        size = sum(x.nbytes for x in jax.tree.leaves(state))
        stats = train_step.lower(state, batch(), cfg=cfg).compile().memory_analysis()
        assert stats.alias_size_in_bytes >= 0.999 * size
        kept = jax.tree.leaves(state)
        train_step(state, batch(), cfg=cfg)
        assert all(x.is_deleted() for x in kept)
