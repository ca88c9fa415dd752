"""The trace: what it shows is what was recorded and what the model says, against the float64 oracle; and no text of a run becomes markup."""

import dataclasses
import io
import json

import browser
import jax
import numpy as np
import pytest
from oracles import decoder, latent, replay
from pages import Page
from rich.console import Console
from support import END, INIT, change, params, prompts, tiny

from lgrpo.config import DataConfig
from lgrpo.data.prompts import load_tokenizer, resolve
from lgrpo.data.word_problems import generate
from lgrpo.errors import UserError
from lgrpo.latent.laws.exact import Exact
from lgrpo.latent.laws.gaussian import Gaussian
from lgrpo.latent.noise import shape_noise
from lgrpo.report import trace_view
from lgrpo.report.text import visible
from lgrpo.report.trace import trace, winners
from lgrpo.report.trace_view import Side, print_traces, select_problems, trace_html
from lgrpo.train.steps.rl import group, make_train_batch
from lgrpo.train.steps.update import init_state
from lgrpo.types import Finish, Scored

TOKENIZER = load_tokenizer(DataConfig())
CONFIGS = {
    "paper": tiny(rollout__answer__temperature=0.6),
    "exact": tiny(
        rollout__latent__law=Exact(),
        rollout__latent__noise_scale=0.7,
        algo__first_token=False,
    ),
    "quirks": tiny(
        rollout__latent__noise_scale=0.5,
        rollout__latent__law__delta=0.25,
        rollout__latent__min_latent=1,
        algo__winner_must_be_valid=False,
        algo__winner_score="latent_mean",
    ),
    "gaussian": tiny(rollout__latent__law=Gaussian(sigma=0.5), algo__first_token=False),
    "explicit": tiny(rollout__mode="explicit", rollout__latent__k=1, algo__first_token=False),
}


def lucky(record, golds, tokenizer, cfg):
    """A grader for random models, which are never right: half of the samples, those that did not finish among them."""
    rewards = np.random.default_rng(0).integers(0, 2, len(record.finish)).astype(np.float32)
    return Scored(rewards=rewards, correct=rewards > 0, valid=np.isin(record.finish, (Finish.EOS, Finish.FORCED_EXIT)))


@pytest.fixture(scope="module", params=CONFIGS)
def traced(request):
    """(config, traces, record)."""
    cfg = CONFIGS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lgrpo.report.trace.score", lucky)
        return cfg, *trace(params(cfg.model), prompts(), ["1"] * 4, jax.random.key(3), cfg=cfg, tokenizer=TOKENIZER)


def rows(traces):
    """(row of the rollout, its sample) of all traces."""
    return [(b * len(t.samples) + s.index, s) for b, t in enumerate(traces) for s in t.samples]


def test_numbers_are_those_of_the_record(traced):
    """Ids, weights and log-probs as sampled; log-prob plus margin gives back the recorded score."""
    cfg, traces, record = traced
    for n, sample in rows(traces):
        assert len(sample.steps) == record.mask[n].sum()
        for step in sample.steps:
            t = step.index
            assert (step.kind == "latent") == record.is_latent[n, t]
            assert step.logp == record.logps[n, t]
            k = cfg.rollout.latent.k if step.kind == "latent" else 1
            assert [c.id for c in step.components] == record.ids[n, t, :k].tolist()
            assert [c.weight for c in step.components] == record.weights[n, t, :k].tolist()
            if step.kind == "latent":
                if not cfg.rollout.latent.law.scored:
                    continue
                scores = [c.logp + c.margin for c in step.components]
                np.testing.assert_allclose(scores, record.scores[n, t], atol=1e-4)
        kinds = [step.kind for step in sample.steps]
        assert kinds.count("exit") == record.thought[n]
        assert kinds[: record.chain_len[n]] == ["latent" if cfg.rollout.mode == "latent" else "thought"] * record.chain_len[n]


def test_ranks_and_probabilities_against_the_oracle(traced):
    """The model replayed in float64 by NumPy: log-probs, ranks by argsort, probability of the end of thinking, entropy."""
    cfg, traces, record = traced
    weights, batch = params(cfg.model), prompts()
    table = np.asarray(weights["embed"], np.float64)
    for n, sample in rows(traces)[::3]:
        row = batch.tokens[n // 4][batch.mask[n // 4]]
        own = jax.tree.map(lambda x, n=n: x[n], record)
        fed = [replay.fed(table, cfg.rollout.latent, own, t) for t in range(len(sample.steps) - 1)]
        inputs = np.stack([*(table[t] for t in row), *fed])
        z = decoder.logits(weights, decoder.forward(weights, cfg.model, inputs))[len(row) - 1 :]
        for step in sample.steps:
            logits = z[step.index].copy()
            if cfg.rollout.mode == "latent" and step.index < cfg.rollout.latent.min_latent:
                logits[END] = -1e30
            logps = latent.log_softmax(logits)
            order = np.argsort(-logps, kind="stable")
            for c in step.components:
                assert abs(c.logp - logps[c.id]) < 1e-4
                assert order[c.rank - 1] == c.id
            assert abs(step.exit_prob - np.exp(logps[END])) < 1e-5
            assert abs(step.entropy + (np.exp(logps) * logps)[logps > -100].sum()) < 1e-4


def test_noise_is_what_the_sampler_added(traced):
    """Shaping the shown draw again gives score minus log-prob; it lies in the clamp, and what sits on an end is marked."""
    cfg, traces, _ = traced
    c = cfg.rollout.latent
    found = [x for _, s in rows(traces) for step in s.latents for x in step.components]
    assert bool(found) == (cfg.rollout.mode == "latent")
    shape = {name: getattr(c.law, name, None) for name in ("clamp", "one_sided", "delta")}
    for x in found:
        if not c.law.scored:
            assert x.draw is None and x.margin is None and not x.clamped
            continue
        again = shape_noise(np.float32([[x.draw]]), scale=c.noise_scale, **shape)
        assert abs(again.item() - x.margin) < 1e-4
        if shape["clamp"] is None:
            assert not x.clamped
        else:
            assert shape["clamp"][0] - 1e-3 < x.draw < shape["clamp"][1] + 1e-3
            assert x.clamped == (min(abs(x.draw - end) for end in shape["clamp"]) <= 1e-3)


def test_advantages_are_those_of_training(traced):
    cfg, traces, record = traced
    scored = lucky(record, None, TOKENIZER, cfg)
    batch = make_train_batch(prompts(), group(record, 4), scored.rewards.reshape(-1, 4), scored.valid.reshape(-1, 4), cfg=cfg)
    advantages = np.asarray(batch.advantages).reshape(-1, cfg.rollout.max_new_tokens)
    assert np.abs(advantages).max() > 0
    for n, sample in rows(traces):
        assert (sample.reward, sample.valid) == (scored.rewards[n], scored.valid[n])
        np.testing.assert_array_equal([step.advantage for step in sample.steps], advantages[n][record.mask[n]])


def test_winner_is_the_likeliest_correct_sample(traced):
    """By NumPy: among samples with a positive advantage (and valid, where the config wants that), the highest mean log-prob."""
    cfg, traces, record = traced
    some = False
    for b, t in enumerate(traces):
        best, score_of_best = None, -np.inf
        for s in t.samples:
            n = b * 4 + s.index
            where = record.mask[n] & record.is_latent[n] if cfg.algo.winner_score == "latent_mean" else record.mask[n]
            eligible = where.any() and (s.valid or not cfg.algo.winner_must_be_valid)
            if s.reward > 0 and s.advantage > 0 and eligible and (mean := record.logps[n][where].mean()) > score_of_best:
                best, score_of_best = s.index, mean
        assert (t.winner.index if t.winner else None) == best
        some |= best is not None
    assert some


def test_two_checkpoints_share_their_noise():
    """Clamped noise is drawn for each token: what both models mixed at the first step got the same draw, whatever else differs."""
    cfg = CONFIGS["paper"]
    shared = 0
    for key in map(jax.random.key, range(3)):
        a, b = (trace(params(cfg.model, seed), prompts(), ["1"] * 4, key, cfg=cfg, tokenizer=TOKENIZER)[0] for seed in (0, 1))
        for s, r in zip((s for t in a for s in t.samples), (s for t in b for s in t.samples), strict=True):
            if s.latents and r.latents:
                draws = {c.id: c.draw for c in r.latents[0].components}
                for c in s.latents[0].components:
                    if c.id in draws:
                        assert abs(c.draw - draws[c.id]) < 1e-4
                        shared += 1
    assert shared > 5


def test_nobody_wins_without_an_eligible_sample():
    cfg = CONFIGS["paper"]
    _, record = trace(params(cfg.model), prompts(), [""] * 4, jax.random.key(1), cfg=cfg, tokenizer=TOKENIZER)
    grouped = group(record, 4)
    nothing = np.zeros((4, 4), np.float32)
    assert not winners(grouped, nothing, np.ones((4, 4), bool), cfg.algo).any()
    one = np.eye(4, dtype=np.float32)
    for invalid in ("keep", "zero", "exclude"):  # the correct ones are invalid
        assert not winners(grouped, one, ~one.astype(bool), change(cfg, algo__invalid=invalid).algo).any(), invalid
    assert (winners(grouped, one, np.ones((4, 4), bool), cfg.algo) == one.astype(bool)).all()


EVIL = "<script>alert(1)</script>\x1b[31m&\u202e"


def hostile(traces):
    """Traces whose texts are markup and control characters."""

    def spoil(step):
        return dataclasses.replace(step, components=tuple(dataclasses.replace(c, token=EVIL) for c in step.components))

    def bad(s):
        return dataclasses.replace(s, answer=EVIL, steps=tuple(spoil(step) for step in s.steps))

    return [dataclasses.replace(t, prompt=EVIL, gold=EVIL, samples=tuple(bad(s) for s in t.samples)) for t in traces]


def test_page(traced):
    """Valid, self-contained, every exact number of every component in it, and texts stay texts."""
    cfg, traces, _ = traced
    text = trace_html([Side("a", traces), Side(EVIL, hostile(traces))], cfg)
    page = Page(text)
    assert page.problems == []
    assert set(page.links) - {f"#{i}" for i in page.ids} == {"data:,"}
    assert text.count("<script") == 1 and "\x1b" not in text and "\u202e" not in "".join(page.texts)
    values = {attrs["value"] for tag, attrs in page.tags if tag == "data"}
    for _, sample in rows(traces):
        for step in sample.latents:
            for c in step.components:
                assert {repr(c.weight), str(c.rank)} | ({repr(c.margin)} - {"None"}) <= values
            assert {repr(step.exit_prob), repr(step.advantage)} <= values
    saved = json.loads(page.data)["sides"][0]["traces"]
    assert saved[0]["samples"][0]["steps"][0]["components"][0]["weight"] == traces[0].samples[0].steps[0].components[0].weight


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_in_a_real_browser(traced, tmp_path):
    """No complaint on the console, no request, no sideways scrolling, with everything unfolded; the hostile texts are seen as texts."""
    cfg, traces, _ = traced
    page = tmp_path / "t.html"
    page.write_text(trace_html([Side("a", traces), Side(EVIL, hostile(traces))], cfg))
    with browser.Browser() as chromium:
        for width, height in browser.SIZES.values():
            chromium.open(page, width, height, dark=width < 600)
            chromium.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert chromium.evaluate("document.documentElement.scrollWidth") <= width
            assert "<script>alert(1)</script>" in chromium.evaluate("document.querySelector('.prompt ~ .sides').innerText")
            assert chromium.complaints() == []


@pytest.mark.parametrize("width", [100, 220])
def test_terminal(traced, width):
    """Stacked or side by side: the shown samples with their tokens, the winner, and no control characters of a text."""
    _, traces, _ = traced
    out = io.StringIO()
    print_traces([Side("first", traces), Side("second", hostile(traces))], Console(file=out, width=width), show=2)
    text = out.getvalue()
    assert "\x1b" not in text and "\u202e" not in text and "\\x1b" in text
    assert text.count("problem ") == 4 and text.count("first: ") == 4
    assert text.count("★ winner") >= sum(t.winner is not None for t in traces)
    assert max(map(len, text.splitlines())) <= width
    assert ("first: " in text and any("second: " in line and "first: " in line for line in text.splitlines())) == (width > 200)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_weights_are_never_cut(traced, width):
    """Every weight of every latent step in the width of a narrow terminal, a wide one and a pipe; explicit chains are one text with its lines."""
    _, traces, _ = traced
    out = io.StringIO()
    print_traces([Side("a", traces)], Console(file=out, width=width), show=4)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "…" not in out.getvalue()
    text = " ".join(out.getvalue().split())
    for t in traces:
        for s in t.samples:
            assert all(f"{c.weight:.3f}" in text for step in s.latents for c in step.components)
            assert bool(s.chain) <= (not s.latents) and ("chain: " in text) >= bool(s.chain)


def test_line_breaks_and_chains_are_shown():
    cfg = CONFIGS["explicit"]
    (first, *_), _ = trace(params(cfg.model), prompts(), ["1"] * 4, jax.random.key(3), cfg=cfg, tokenizer=TOKENIZER)
    sample = next(s for s in first.samples if s.chain)
    assert sample.chain == TOKENIZER.decode([step.components[0].id for step in sample.steps if step.kind == "thought"])
    broken = dataclasses.replace(sample, chain="one\ntwo\x1b", answer="a\nb")
    out = io.StringIO()
    side = Side("a", [dataclasses.replace(first, prompt="p\nq", samples=(broken,))])
    print_traces([side], Console(file=out, width=80), show=1)
    lines = [line.strip("│ ") for line in out.getvalue().splitlines()]
    for part in (["p", "q"], ["chain: one", "two\\x1b"], ["answer: a", "b"]):
        at = lines.index(part[0])
        assert lines[at : at + 2] == part
    page = trace_html([side], cfg)
    assert "one\ntwo\\x1b" in page and "p\nq" in page


def test_a_question_is_asked(cfg, tmp_path, capsys):
    """Under the checkpoint's own settings: without noise one sample whose mixtures are the noiseless top K; with --samples so many."""
    from lgrpo.__main__ import run as command
    from lgrpo.runs.checkpoint import Checkpoints

    saver = Checkpoints(tmp_path, cfg.checkpoint)
    state = init_state(INIT(cfg.model, jax.random.key(0)), cfg, rl=True)
    saver.save(3, state=state, data={}, buffer=None, cfg=cfg, extra={}, metric=None)
    saver.close()
    assert command(["ask", str(tmp_path), "Tom has 3 pens ."]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "step 3; no noise" in said and "Tom has 3 pens . <think>" in said and said.count("sample ") == 1
    assert "weight" in said and "advantage" not in said and "wrong" not in said and "answer: " in said
    assert command(["ask", str(tmp_path), "Tom has 3 pens .", "--samples", "2", "--gold", "1", "--rollout.max-new-tokens", "6"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("sample ") >= 2 and "2 samples under noise" in said and ("wrong" in said or "correct" in said)
    for wrong, says in (("", "empty"), ("Zebras ~ quux", "unknown")):
        with pytest.raises(UserError, match=says):
            command(["ask", str(tmp_path), wrong])


def test_visible():
    assert visible("a b") == "a b"
    assert visible(" x") == "␣x"
    assert visible("a\n\x00\u200b") == "a\\n\\x00\\x200b"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    records = [generate("mini", "test", i) for i in range(5)]
    (folder / "test.jsonl").write_text("".join(json.dumps({"problem": r["problem"], "answer": r["answer"]}) + "\n" for r in records))
    return folder


@pytest.fixture(scope="module")
def cfg(data):
    cfg = tiny(data__source="jsonl", data__path=str(data), data__max_prompt=40, model__vocab_size=0, data__think_end_id=-1, data__eos_id=-1)
    return resolve(cfg, TOKENIZER)


def test_problems_are_chosen(cfg):
    first, golds = select_problems(cfg, TOKENIZER, "test", "2")
    assert first.uid.tolist() == [0, 1] and len(golds) == 2
    some, answers = select_problems(cfg, TOKENIZER, "test", "4,1")
    assert some.uid.tolist() == [4, 1] and answers[1] == golds[1]
    assert select_problems(cfg, TOKENIZER, "test", "3,")[0].uid.tolist() == [3]
    for wrong in ("x", "0", "-1,", "7,", ""):
        with pytest.raises(UserError, match="--problems"):
            select_problems(cfg, TOKENIZER, "test", wrong)


def test_command(cfg, tmp_path, capsys):
    """Two workdirs with checkpoints, one page."""
    from lgrpo.runs.checkpoint import Checkpoints

    for name, seed in (("a", 0), ("b", 1)):
        state = init_state(INIT(cfg.model, jax.random.key(seed)), cfg, rl=True)
        saver = Checkpoints(tmp_path / name, cfg.checkpoint)
        saver.save(7, state=state, data={}, buffer=None, cfg=cfg, extra={}, metric=None)
        saver.close()
    out = tmp_path / "t.html"
    assert trace_view.run(cfg, tmp_path / "a", other=tmp_path / "b", problems="2", out=out, show=1) == 0
    said = capsys.readouterr().out
    assert "step 7" in said and said.count("gold answer") == 2
    page = Page(out.read_text())
    assert page.problems == [] and {"p0", "p1"} <= page.ids
