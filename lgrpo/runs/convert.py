"""import-hf and export-hf: between Hugging Face folders and lgrpo workdirs.

An import is an ordinary workdir: checkpoint 0 holds the weights, `hf/` the tokenizer and the original config.json. A run starts from it with
`--train.init-from WORKDIR --data.tokenizer WORKDIR/hf`. An export takes any workdir; what config.json and the tokenizer files say beyond our
config comes from the folder that data.tokenizer names.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from lgrpo.config import CheckpointConfig, DataConfig, ExperimentConfig, MeshConfig, ModelConfig
from lgrpo.config.overrides import apply_diff, to_json
from lgrpo.config.reads import end_ids
from lgrpo.data.added_tokens import add_tokens, content, drop_tokens, ids_beyond, pieces_of, write_json
from lgrpo.data.chat import has_template
from lgrpo.data.gguf_tokenizer import write_folder
from lgrpo.data.prompts import ASSET, TextTokenizer, load_tokenizer, resolve
from lgrpo.data.sources import Record
from lgrpo.data.tokenise import prompt_texts
from lgrpo.errors import UserError
from lgrpo.evaluation.shards import params_digest
from lgrpo.models.decoder import compute_params
from lgrpo.models.gguf_io import GgufFile
from lgrpo.models.hf import check_names, export_tensors, import_params, stored_dtype, tensor_sizes
from lgrpo.models.hf_config import config_from_hf, config_to_hf, end_ids_of, with_ends
from lgrpo.models.hf_io import TensorFiles, read_json, write_tensors
from lgrpo.models.spec import abstract_params, count_params, largest_array, param_shardings, param_specs
from lgrpo.runs import multihost, storage
from lgrpo.runs.checkpoint import Checkpoints, load_weights, saved_config, write_config
from lgrpo.runs.integrity import require_finite
from lgrpo.runs.model_card import model_card
from lgrpo.runs.storage import PathLike, Place
from lgrpo.runs.stored import flatten
from lgrpo.sharding import make_mesh, replicated
from lgrpo.types import TrainState

ExtraTokens = Literal["refuse", "drop", "pad"]
LATENT_FILE, GENERATION = "latent_config.json", "generation_config.json"
# Of latent_config.json: how a latent step is sampled. What else LatentConfig holds concerns training.
_SAMPLER = ("k", "tau", "noise_scale", "law", "min_latent", "max_latent")
_FORMER = ("one_sided", "delta", "clamp", "top_p", "order", "end_rule")  # stood there before laws had names; those of today's default law
_THINK = ("think_start", "think_end", "think_end_id")
_PROMPT = "prompt"  # a prompt's text with {problem} in it: for those who decode, not for an import
_LICENCES = ("LICENSE*", "USE_POLICY*")
_TEXT_FILES = (
    *("config.json", GENERATION, LATENT_FILE, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", *_LICENCES),
)
_PAD_TO = 128  # rows, so that a padded vocabulary still divides over the usual meshes


# -- import -------------------------------------------------------------------------------------------------------------------------------


def fetch(source: str, revision: str | None = None) -> pathlib.Path:
    """Folder of a model: `source` itself when it is one, else the repo of that id, downloaded by huggingface_hub (its cache, its login).

    Only safetensors and text files are downloaded. Errors: UserError when there is neither a folder nor such a repo.
    """
    folder = storage.local(source)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"--revision {revision}: {source} is a folder, which has no revisions; leave the option out")
        return folder
    if source.startswith((".", "/", "~", "gs://")) or source.count("/") != 1:
        raise UserError(f"{source}: no such folder, and no repo id either; give a folder or owner/name")
    import huggingface_hub  # here, because a folder needs no network

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                source,
                revision=revision,
                allow_patterns=["*.safetensors", "*.safetensors.index.json", *_TEXT_FILES],
                ignore_patterns=["*/*"],
            )
        )
    except Exception as error:  # the hub's, the transport's and the file system's, with no common base
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: no such folder, and huggingface_hub cannot download it ({type(error).__name__}: {reason})") from error


def _opened(source: str, revision: str | None, scratch: pathlib.Path) -> tuple[pathlib.Path, TensorFiles | GgufFile]:
    """Folder of the texts, and the tensors, of a folder, a repo or a GGUF file, whose texts are written into `scratch`."""
    if not source.endswith(".gguf"):
        folder = fetch(source, revision)
        if not any(folder.glob("*.safetensors*")) and (single := sorted(folder.glob("*.gguf"))):
            raise UserError(f"{folder}: holds no safetensors, but {single[0].name}; give that file: import-hf {single[0]}")
        return folder, TensorFiles(folder)
    path = storage.local(source)
    if not path.is_file():
        raise UserError(f"{source}: no such file; give a .gguf file, a folder or owner/name")
    if revision is not None:
        raise UserError(f"--revision {revision}: {source} is a file, which has no revisions; leave the option out")
    file = GgufFile(path)
    write_folder(file, scratch)
    return scratch, file


def _copy_texts(folder: pathlib.Path, out: pathlib.Path) -> None:
    """Tokenizer files, configs and license; no weights, no code, no model card (it describes the original)."""
    out.mkdir(parents=True, exist_ok=True)
    for pattern in _TEXT_FILES:
        for file in folder.glob(pattern):
            shutil.copyfile(file, out / file.name)


def _place_texts(
    folder: pathlib.Path, out: pathlib.Path, rows: int, extra: ExtraTokens, add: Sequence[str], where: str, *, alone: bool = False
) -> tuple[int, dict[int, list[int]]]:
    """Copies everything but the weights to `out`, and changes the tokenizer there; returns the vocabulary rows that the model needs for it, and
    the ids of `add` with the tokens that spelled their texts before. rows: those stored. alone: every process has an `out` of its own.

    Released Latent-SFT checkpoints carry a `<|compress_token|>` one past the last row. refuse: an error; drop: such added tokens leave the
    copied tokenizer; pad: the model gets rows for them. More rows than stored are a multiple of 128.
    """
    beyond = ids_beyond(folder, rows, where)
    shown = ", ".join(f"{text!r} ({i})" for text, i in list(beyond.items())[:5])
    if beyond and extra == "refuse":
        raise UserError(
            f"{where}: {len(beyond)} token(s) have no row among the model's {rows}: {shown}; "
            "--extra-tokens drop removes them from the tokenizer, --extra-tokens pad adds rows"
        )
    writing = multihost.is_main() or alone
    if writing:
        _copy_texts(folder, out)
        if extra == "drop":
            drop_tokens(out, beyond)
    multihost.barrier("lgrpo_import_texts")
    left = ids_beyond(out, rows, where)
    if left and extra != "pad":
        raise UserError(f"{where}: {next(iter(left))!r} has no row and is no added token; use --extra-tokens pad")
    pieces = pieces_of(load_tokenizer(DataConfig(tokenizer=str(out))), dict.fromkeys(add))
    if known := [repr(text) for text in add if text not in pieces]:
        multihost.say(f"--add-tokens: {', '.join(known)}: tokens of {where} already; nothing to add")
    multihost.barrier("lgrpo_import_pieces")  # all have read the tokenizer as it was
    if writing and pieces:
        add_tokens(out, list(pieces))
    multihost.barrier("lgrpo_import_added")
    tokenizer = load_tokenizer(DataConfig(tokenizer=str(out)))
    fresh = {tokenizer.id_of(text): ids for text, ids in pieces.items()}
    size = tokenizer.vocab_size
    vocab = rows if size <= rows else math.ceil(size / _PAD_TO) * _PAD_TO
    for i, ids in fresh.items():
        spelled = " ".join(repr(tokenizer.token_of(j)) for j in ids) or "all tokens"
        multihost.say(f"--add-tokens: {tokenizer.token_of(i)!r} = {i}: its row is the mean of {spelled} and a little noise")
    if vocab > rows:
        multihost.say(f"the tables are padded from {rows} to {vocab} rows")
    return vocab, fresh


def _ends(folder: pathlib.Path, tokenizer: TextTokenizer) -> tuple[str, ...]:
    """All tokens that end an answer: eos_token of tokenizer_config.json, which is that of training, then the eos_token_id of config.json and
    generation_config.json. Errors: UserError when there is none, or an id without a token."""
    file, found = folder / "tokenizer_config.json", []
    token = content(read_json(file).get("eos_token")) if file.is_file() else None
    if isinstance(token, str):
        found.append(token)
    for file in (folder / "config.json", folder / GENERATION):
        for i in end_ids_of(read_json(file), str(file)) if file.is_file() else []:
            # Beyond what an id can be (32 bits), and in rows without a token, there is no text.
            if i >= 2**31 or not tokenizer.token_of(i):
                raise UserError(f"{file}: eos_token_id has {str(i)[:20]}, which is no token of {tokenizer.name}; correct it or take it out")
            found.append(tokenizer.token_of(i))
    if not found:
        raise UserError(
            f"{folder}: neither tokenizer_config.json (eos_token) nor config.json (eos_token_id) names the end of sequence; add it"
        )
    return tuple(dict.fromkeys(found))


def _latent_settings(folder: pathlib.Path) -> dict[str, Any]:
    """latent_config.json as changes of a config; {} where the model has none. Errors: UserError for an unknown key."""
    file = folder / LATENT_FILE
    if not file.is_file():
        return {}
    sections = dict.fromkeys(_SAMPLER, "rollout.latent") | dict.fromkeys(_FORMER, "rollout.latent.law") | dict.fromkeys(_THINK, "data")
    raw = {name: value for name, value in read_json(file).items() if name != _PROMPT}
    if unknown := sorted(raw.keys() - sections.keys()):
        raise UserError(f"{file}: {unknown[0]} is unknown; it was written by another version of lgrpo")
    return {f"{sections[name]}.{name}": tuple(value) if isinstance(value, list) else value for name, value in raw.items()}


def _imported_config(folder: pathlib.Path, model: ModelConfig) -> ExperimentConfig:
    """What the checkpoint of an import says about itself: model, tokenizer and sampler; resolved."""
    tokenizer = load_tokenizer(DataConfig(tokenizer=str(folder)))
    template = "chat" if has_template(folder) else "instruct"
    eos, *more = _ends(folder, tokenizer)
    data = DataConfig(tokenizer=str(folder), eos=eos, more_eos=tuple(more), template=template)
    cfg = ExperimentConfig(name="imported", model=model, data=data)
    return resolve(apply_diff(cfg, _latent_settings(folder)), tokenizer)


def import_hf(
    source: str,
    workdir: PathLike,
    *,
    revision: str | None = None,
    dtype: Literal["keep", "float32", "bfloat16"] = "keep",
    extra_tokens: ExtraTokens = "refuse",
    add: Sequence[str] = (),
    mesh: MeshConfig = MeshConfig(data=1, fsdp=-1),  # noqa: B008 (frozen)
) -> ExperimentConfig:
    """A Hugging Face folder or repo, or a GGUF file, as checkpoint 0 of a new workdir; returns the config saved with it.

    Tensors go straight into sharded arrays, each device's part by itself. dtype: keep stores what the files hold (bit for bit), and float32 of a
    GGUF file. add: texts that become tokens of their own, each with a row for it (hf.fresh_row).
    Errors: UserError for anything the decoder does not compute, a tensor that is missing or has no place, a workdir with checkpoints.
    """
    workdir = storage.absolute(workdir)
    with tempfile.TemporaryDirectory(prefix="lgrpo-import-") as scratch:
        folder, files = _opened(source, revision, pathlib.Path(scratch))
        where = str(files.folder)
        model = config_from_hf(read_json(folder / "config.json"), str(folder / "config.json") if files.folder == folder else where)
        rows = model.vocab_size
        check_names(files, model, rows=rows)
        param_dtype = stored_dtype(files, model) if dtype == "keep" else dtype
        placed = make_mesh(mesh)
        stored = dataclasses.replace(model, param_dtype=param_dtype)
        once = CheckpointConfig(resume=False, keep=1, keep_best=False)
        checkpoints = Checkpoints(workdir, once, largest_array(param_specs(stored), stored))
        try:
            away = storage.remote(workdir)
            texts = pathlib.Path(scratch) / "placed" if away else workdir / "hf"
            vocab, fresh = _place_texts(folder, texts, rows, extra_tokens, add, where, alone=away)
            model = dataclasses.replace(model, vocab_size=vocab, dtype=param_dtype, param_dtype=param_dtype)
            cfg = _imported_config(texts, model)
            if away:
                if multihost.is_main():
                    storage.upload(texts, workdir / "hf")
                cfg = apply_diff(cfg, {"data.tokenizer": str(workdir / "hf")})
            params = import_params(files, model, _shardings(model, placed), rows=rows, fresh=fresh)
            require_finite(flatten(params), where, "download the model again, or import other weights")
            zero = jax.device_put(np.int32(0), replicated(placed))  # a scalar of one process alone cannot be saved by several
            state = TrainState(zero, params, None, zero, zero, None)
            checkpoints.save(0, state=state, data={}, buffer=None, cfg=cfg, extra={"seconds": 0.0, "source": source}, metric=None)
        finally:
            checkpoints.close()
    write_config(workdir, cfg)
    return cfg


def _shardings(model: ModelConfig, mesh: Mesh) -> Any:
    try:
        return param_shardings(model, mesh)
    except ValueError as error:  # a dimension that does not divide
        raise UserError(f"{error}; choose other --fsdp and --tensor") from error


def describe_import(cfg: ExperimentConfig, workdir: PathLike) -> str:
    """What was imported, and how to use it."""
    m, d = cfg.model, cfg.data
    options = ["--train.init-from", workdir, "--data.tokenizer", d.tokenizer, "--data.eos", d.eos]
    options += ["--data.more-eos", *d.more_eos] * bool(d.more_eos)
    more = "".join(f" and {text!r} = {i}" for text, i in zip(d.more_eos, d.more_eos_ids, strict=True))
    return (
        f"{m.family}, {count_params(m):,} parameters in {m.param_dtype}, {m.vocab_size} rows; "
        f"end of thinking {d.think_end!r} = {d.think_end_id}, end of sequence {d.eos!r} = {d.eos_id}{more}\n"
        "in an experiment's file, with imported and imported_data of lgrpo.config.imported: "
        f"model=imported({str(workdir)!r}), data=imported_data({str(workdir)!r}), train=TrainConfig(init_from={str(workdir)!r})\n"
        f"start from it with: {shlex.join(map(str, [*options, '--data.template', d.template]))}"
    )


# -- export -------------------------------------------------------------------------------------------------------------------------------


def latent_config(cfg: ExperimentConfig, prompt: str) -> dict[str, Any]:
    """Content of latent_config.json: prompt, think tokens and sampler. cfg must be resolved."""
    sampler = {name: to_json(cfg)["rollout"]["latent"][name] for name in _SAMPLER}
    return {_PROMPT: prompt} | {name: getattr(cfg.data, name) for name in _THINK} | sampler


def export_hf(
    workdir: PathLike,
    out: PathLike,
    *,
    best: bool = False,
    dtype: Literal["keep", "float32", "bfloat16"] = "keep",
    tokenizer: str = "",
    shard_bytes: int = 5_000_000_000,
) -> list[str]:
    """Weights of a workdir's newest (or best) checkpoint as a Hugging Face folder; returns the names of the weight files.

    Writes safetensors (several with an index above shard_bytes), config.json, the tokenizer's files, latent_config.json and a model card with
    the evaluations that lie in the workdir. tokenizer: where its files are now, when the folder that the run used has moved.
    Of several processes the main one writes, and each tensor is gathered when its turn comes; the others return no names.
    Errors: UserError when `out` exists, or there is nothing to export.
    """
    out = storage.absolute(out)
    if out.exists():
        raise UserError(f"{out}: exists already; choose another folder or remove it")
    cfg = saved_config(workdir)
    if tokenizer:
        cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, tokenizer=tokenizer))
    text_tokenizer = load_tokenizer(cfg.data)
    cfg = resolve(cfg, text_tokenizer)
    ways = math.gcd(jax.device_count(), cfg.model.d_model)  # spread, so that no device needs room for the whole model
    if multihost.several() and ways < jax.device_count():  # some process would hold nothing
        multihost.require_one(f"export-hf of a model whose width, {cfg.model.d_model}, does not divide over {jax.device_count()} devices")
    mesh = make_mesh(MeshConfig(data=1, fsdp=ways), jax.devices()[:ways])
    params, step = load_weights(workdir, abstract_params(cfg.model, param_shardings(cfg.model, mesh)), best=best)
    prompt = prompt_texts(cfg, text_tokenizer, cfg.data.eval_split, [Record(problem="{problem}", cot="", answer="", uid=0)])[0]
    source = _text_source(cfg)
    licences = sorted(file.name for pattern in _LICENCES for file in source.glob(pattern)) if source.is_dir() else []
    about = {"step": step, "digest": params_digest(compute_params(params, cfg.model)), "prompt": prompt, "licences": licences}
    card = model_card(cfg, storage.place(workdir), **about)  # Orbax opens the runs before on all processes or on none
    model = cfg.model if dtype == "keep" else dataclasses.replace(cfg.model, param_dtype=dtype)
    tensors = export_tensors(params, model, multihost.host)
    names: list[str] = []
    if multihost.is_main():
        names = _write_model(out, cfg, model, tensors, shard_bytes, prompt, card)
    for _ in tensors:  # the other processes have their part in each
        pass
    multihost.barrier("lgrpo_export")
    return names


def _write_model(
    out: Place, cfg: ExperimentConfig, model: ModelConfig, tensors: Iterable[np.ndarray], shard_bytes: int, prompt: str, card: str
) -> list[str]:
    """The folder `out`, whole or not at all. Returns the names of the weight files."""
    away = storage.remote(out)
    if not away:
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=None if away else out.parent, prefix=f".{out.name}-") as temporary:
        folder = pathlib.Path(temporary) / "model"
        folder.mkdir()
        _write_texts(folder, cfg, model, prompt)
        (folder / "README.md").write_text(card, encoding="utf-8")
        names = write_tensors(folder, tensor_sizes(model), tensors, shard_bytes)
        if away:
            storage.upload(folder, out, last="config.json")  # without which there is no model
        else:
            folder.rename(out)  # what has the name is whole
    return names


def _text_source(cfg: ExperimentConfig) -> pathlib.Path:
    """The tokenizer's file, or the folder with what else came with it."""
    return ASSET if cfg.data.tokenizer == "embedded" else storage.local(cfg.data.tokenizer)


def _write_texts(folder: pathlib.Path, cfg: ExperimentConfig, model: ModelConfig, prompt: str) -> None:
    """Everything but the weights and the model card."""
    source = _text_source(cfg)
    if source.is_dir():
        _copy_texts(source, folder)
    else:
        shutil.copyfile(source, folder / "tokenizer.json")
    original = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if not (folder / "tokenizer_config.json").is_file():
        basic = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": cfg.data.eos, "clean_up_tokenization_spaces": False}
        write_json(folder / "tokenizer_config.json", basic)
    length = cfg.data.max_prompt + cfg.rollout.max_new_tokens
    ends = end_ids(cfg.data)
    write_json(folder / "config.json", config_to_hf(model, original, eos_ids=ends, min_positions=length))
    if (folder / GENERATION).is_file():
        write_json(folder / GENERATION, with_ends(read_json(folder / GENERATION), ends))
    write_json(folder / LATENT_FILE, latent_config(cfg, prompt))
