"""The model card of an export, README.md: where the weights come from, how they were trained, what was measured of them, how to decode them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import diff
from lgrpo.data.registry import DATA_SETS, locate
from lgrpo.errors import UserError
from lgrpo.evaluation.about import data_name
from lgrpo.evaluation.summary import shown
from lgrpo.runs import markdown, storage
from lgrpo.runs.checkpoint import saved_config, saved_extra
from lgrpo.runs.storage import PathLike, Place

_ELSEWHERE: tuple[str, ...] = (
    "train.init_from",
    "train.compilation_cache",
    "train.start_timeout",
    "data.data_dir",
    "data.path",
    "data.tokenizer",
    "model.",
)
_ELSEWHERE += ("logging.", "checkpoint.", "mesh.", "evaluation.", "name")
_NUMBERS = ("pass@1", "chain_tokens", "answer_tokens", "invalid_frac")
_ANCESTORS = 20  # stages that are looked at


def lineage(workdir: PathLike) -> tuple[list[ExperimentConfig], str]:
    """Configs of the run and of those that it started from, newest first, and the source of the import that they began with.

    The source is "" for random weights, and "unknown" where a folder is gone.
    """
    configs: list[ExperimentConfig] = []
    while len(configs) < _ANCESTORS:
        try:
            cfg, extra = saved_config(workdir), saved_extra(workdir)
        except UserError:
            return configs, "unknown"
        if source := extra.get("source"):
            return configs, str(source)
        configs.append(cfg)
        if not cfg.train.init_from:
            return configs, ""
        workdir = cfg.train.init_from
    return configs, "unknown"


def evaluations(workdir: Place, digest: str) -> list[dict[str, Any]]:
    """eval.json of every evaluation in the workdir that is of the weights with this digest."""
    files = [file for pattern in ("*/eval.json", "*/*/eval.json") for file in sorted(workdir.glob(pattern))]
    found = [json.loads(storage.text_of(file)) for file in files]
    return [one for one in found if one.get("about", {}).get("weights") == digest]


def _results(workdir: Place, digest: str) -> Iterator[str]:
    found = evaluations(workdir, digest)
    if not found:
        yield "No evaluation of these weights lay in the workdir when they were exported."
        return
    yield "95 % intervals over problems. Noise-free: latents without noise, greedy answers; sampled: as named."
    yield ""
    rows = []
    for one in found:
        about = one["about"]
        noise = "" if about["noise_scale"] is None else f"latent noise {about['noise_scale']:g}, "
        for name, words in (("noise_free", "noise-free"), ("sampled", f"sampled: {noise}{about['answers']}, {about['samples']} a problem")):
            numbers = [shown(one[name].get(metric), 3) for metric in _NUMBERS]
            rows.append([f"{about['data']}, {about['split']}", one["problems"], words, *numbers])
    yield markdown.table(["data", "problems", "pass", *_NUMBERS], rows)


def _recipe(configs: Sequence[ExperimentConfig], step: int) -> Iterator[str]:
    stages = [f"{c.name} ({c.train.num_steps} steps)" for c in reversed(configs[1:])]
    stages.append(f"{configs[0].name} (checkpoint of step {step} of {configs[0].train.num_steps})")
    yield f"Stages: {', then '.join(stages)}."
    yield ""
    yield "Settings of the last one that differ from lgrpo's defaults:"
    yield ""
    yield "```"
    for path, (_, value) in diff(ExperimentConfig(), configs[0]).items():
        if not path.startswith(_ELSEWHERE):
            yield f"{path} = {value}"
    yield "```"


def _decoding(cfg: ExperimentConfig, prompt: str) -> Iterator[str]:
    d, c = cfg.data, cfg.rollout.latent
    yield f"Prompt: `{json.dumps(prompt, ensure_ascii=False)[1:-1].replace('`', chr(39))}`, with the problem in place of `{{problem}}`."
    yield ""
    if cfg.rollout.mode != "latent":
        yield f"The model thinks in ordinary tokens up to `{d.think_end}`; `generate()` of transformers decodes it."
        return
    yield (
        f"While it thinks, the model feeds back mixtures. Take the {c.k} largest logits; their softmax weighs the rows of the input "
        f"embedding table; the sum is the next input. When the largest logit is that of token {d.think_end_id} (the start of "
        f"`{d.think_end}`), feed that token: from there on the answer is ordinary text. `generate()` does not do this: its first "
        "tokens would be an explicit chain that the model was not trained on."
    )
    yield ""
    yield f"Training sampled with noise: {c.law.describe(c)}. `latent_config.json` has all of it."
    yield ""
    yield "`docs/decode_with_torch.py` of lgrpo decodes this folder with torch and transformers alone, with noise or without:"
    yield ""
    yield "```"
    yield 'python decode_with_torch.py FOLDER "PROBLEM"'
    yield "```"


def _licence(source: str, licences: Sequence[str]) -> str:
    if licences:
        return f"That of the base model, which is in {' and '.join(f'`{name}`' for name in licences)}."
    if source:
        return "That of the base model holds for these weights too; its text was not beside its weights."
    return "No base model: the weights began at random, and whoever trained them says what licence they have."


def model_card(cfg: ExperimentConfig, workdir: Place, *, step: int, digest: str, prompt: str, licences: Sequence[str] = ()) -> str:
    """Markdown. cfg: resolved, of the exported checkpoint; digest: params_digest of its weights as they are computed with; licences: names of
    licence files in the export; prompt: a prompt's text with {problem} in it."""
    configs, source = lineage(workdir)
    cfgs = configs or [cfg]
    base = {"": "none, random weights", "unknown": "not known: a workdir that it started from is gone"}.get(source, f"`{source}`")
    name, split = data_name(cfg, cfg.data.train_split)
    known = DATA_SETS.get(locate(cfg.data.source, cfg.data.train_split)[0])
    licensed = f", under {known.license}: {known.homepage}" if known else ""
    kind = "thinks in mixtures of token embeddings" if cfg.rollout.mode == "latent" else "thinks in ordinary tokens"
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [latent-reasoning, lgrpo]\n---",
        f"# {cfg.name}\n\nA model that {kind} and answers in text. Trained with lgrpo.",
        f"## Base and data\n\nBase: {base}. Data of the last stage: {name}, split `{split}`{licensed}.",
        "## Recipe\n\n" + ("\n".join(_recipe(cfgs, step)) if configs else "Weights as they were imported; lgrpo trained nothing."),
        "## Results\n\n" + "\n".join(_results(workdir, digest)),
        "## How to decode\n\n" + "\n".join(_decoding(cfg, prompt)),
        f"## Licence\n\n{_licence(source, licences)}",
    ]
    return "\n\n".join(parts) + "\n"
