"""Records to batches with grain. All text is tokenised once, before the first batch; a batch is then a few array look-ups.

The order of records is a pure function of (seed, position): a stream's state is one position, a shard of a batch is a slice of its rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import grain
import numpy as np

from lgrpo.config import ExperimentConfig
from lgrpo.data import labels, packing, prompts
from lgrpo.data.prompts import TextTokenizer
from lgrpo.data.tokenise import NO_CHAIN, Table, tokenise
from lgrpo.errors import UserError
from lgrpo.types import PromptBatch

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Example:
    """The first record of a stream, for the log: ids of its unpadded prompt, and its target; target: chain, end of thinking and answer where they
    are trained on, else empty."""

    prompt: list[int]
    target: list[int]
    gold: str


class Stream(Generic[T]):
    """An iterator of batches that can say where it is. Not thread-safe."""

    def __init__(
        self, dataset: grain.MapDataset, identity: dict[str, Any], left_out: dict[str, int], example: Example, fingerprint: str = ""
    ) -> None:
        # No threads: there is nothing to wait for, and the state must not run ahead of what was handed out.
        self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
        self._identity = identity
        self.left_out = left_out
        """Records that were too long, by the limit that they exceed, and those without a chain (`all`: each record once)."""
        self.example = example
        self.fingerprint = fingerprint
        """Identity of the tokenised records, where they are for supervised training."""
        self.records: int = identity["records"]

    @property
    def dropped(self) -> int:
        """Records left out."""
        return self.left_out["all"]

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Position and identity, JSON-able."""
        return {"position": self._iterator.get_state(), "identity": dict(self._identity)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken. Errors: UserError when it was taken from other data, another seed or another batch size."""
        theirs = state.get("identity", {})
        differ = [f"{k}: {theirs.get(k)!r} then, {v!r} now" for k, v in self._identity.items() if theirs.get(k) != v]
        if differ or "position" not in state:
            raise UserError(
                f"data state does not fit this stream ({'; '.join(differ) or 'no position'}); resume with the same data settings"
            )
        self._iterator.set_state(state["position"])


PromptStream = Stream[tuple[PromptBatch, list[str]]]
SftStream = Stream[dict[str, np.ndarray]]


def prompt_stream(
    cfg: ExperimentConfig, tokenizer: TextTokenizer, split: str, *, batch: int, shuffle: bool = True, shard: tuple[int, int] = (0, 1)
) -> PromptStream:
    """Stream of (PromptBatch of NumPy arrays, gold answers).

    batch: global batch size; shard (i, n) yields rows i*batch/n .. (i+1)*batch/n of each global batch. Shuffled streams never end,
    and no batch holds a record twice (an epoch's incomplete last batch is left out). Unshuffled streams end after one pass, and their last
    batch may be short.
    Errors: UserError for bad records, a batch larger than the split or a shard that does not divide it.
    """
    table = tokenise(cfg, tokenizer, split, supervised=False)
    columns = _prompt_columns(table, cfg, tokenizer)

    def assemble(rows: np.ndarray, shard: tuple[int, int]) -> tuple[PromptBatch, list[str]]:
        rows = _part(rows, shard)
        return _prompt_batch(columns, rows), [table.gold[i] for i in rows]

    gold = hashlib.sha256("\0".join(table.gold).encode()).hexdigest()[:8]
    return _stream(table, cfg, split, assemble, batch=batch, shuffle=shuffle, shard=shard, fingerprint=f"{_fingerprint(table)} {gold}")


def prompt_batches(
    cfg: ExperimentConfig, tokenizer: TextTokenizer, split: str, *, batch: int, limit: int = 0
) -> list[tuple[PromptBatch, list[str], np.ndarray]]:
    """For evaluation: the first `limit` records (0: all) in file order, as (PromptBatch, gold answers, real bool [batch]).

    Every batch has the same shape; the last one is filled with repeated rows, for which `real` is False.
    """
    table = tokenise(cfg, tokenizer, split, supervised=False)
    columns = _prompt_columns(table, cfg, tokenizer)
    count = min(limit or len(table.gold), len(table.gold))
    out = []
    for start in range(0, count, batch):
        at = np.arange(start, start + batch)
        rows = at % count
        out.append((_prompt_batch(columns, rows), [table.gold[i] for i in rows], at < count))
    return out


def sft_stream(
    cfg: ExperimentConfig,
    tokenizer: TextTokenizer,
    split: str,
    *,
    batch: int,
    shuffle: bool = True,
    shard: tuple[int, int] = (0, 1),
    ways: int = 1,
) -> SftStream:
    """Stream for supervised training; batch, shuffle and shard as in prompt_stream; ways: devices that a batch is spread over. Each item is a dict of
    arrays:

    prompt_tokens int32 [N, P] padded left, prompt_mask bool [N, P];
    chain_tokens int32 [N, C] and chain_mask (C = sft.max_chain), padded right;
    answer_tokens int32 [N, A] and answer_mask (A = sft.max_answer), padded right, end of sequence included; uid int32 [N].
    The end of thinking, data.think_end_id, stands between chain and answer and is in neither. Where the tokenizer spells data.think_end in
    several tokens, the others open the answer.
    In stage latent on labels=encoder also label_ids int32 [N, M, K], label_probs float32 [N, M, K] and label_mask bool [N, M].
    With sft.packing, outside stage 1, also pack_inputs int32 [R, S, W] and pack_steps int32 [R, S, Q]: see packing.packed.
    Errors: as prompt_stream, and UserError for a record without a chain or for labels that do not fit (labels.load_labels).
    """
    table = tokenise(cfg, tokenizer, split, supervised=True)
    pad = prompts.pad_id(cfg.data, tokenizer)
    columns = _prompt_columns(table, cfg, tokenizer)
    columns["chain_tokens"], columns["chain_mask"] = table.chains.padded(cfg.sft.max_chain, pad, left=False)
    columns["answer_tokens"], columns["answer_mask"] = table.answers.padded(cfg.sft.max_answer, pad, left=False)

    fingerprint, more = _fingerprint(table), {}
    if cfg.sft.stage == "latent" and cfg.sft.labels == "encoder":
        count = -(-cfg.sft.max_chain // cfg.sft.compression)
        found = labels.load_labels(cfg, tokenizer, split, fingerprint=fingerprint, uid=table.uid, latents=count)
        columns["label_ids"], columns["label_probs"] = found.ids, found.probs
        columns["label_mask"] = np.arange(count) < -(-columns["chain_mask"].sum(1) // cfg.sft.compression)[:, None]
        more["labels"] = found.content

    packs = cfg.sft.packing and cfg.sft.stage in ("explicit", "latent")
    sizes = _packing_sizes(table, cfg) if packs else None
    settings = {"model": cfg.model, "microbatch": cfg.train.microbatch, "ways": math.lcm(ways, shard[1])}
    layout = packing.plan(sizes, batch, **settings) if sizes else None

    def assemble(rows: np.ndarray, shard: tuple[int, int]) -> dict[str, np.ndarray]:
        item = {name: column[_part(rows, shard)] for name, column in columns.items()}
        if sizes and layout:
            item |= {name: _part(x, shard) for name, x in packing.packed(sizes, rows, layout).items()}
        return item

    return _stream(table, cfg, split, assemble, batch=batch, shuffle=shuffle, shard=shard, fingerprint=fingerprint, more=more)


def _packing_sizes(table: Table, cfg: ExperimentConfig) -> packing.Records:
    per = cfg.sft.compression if cfg.sft.stage == "latent" else 1
    prompts, chains, answers = (ids.sizes for ids in (table.prompts, table.chains, table.answers))
    widest = -(-cfg.sft.max_chain // per) + 1 + cfg.sft.max_answer
    return packing.Records(prompts, -(-chains // per) + 1 + answers, cfg.data.max_prompt, widest)


def _part(x: np.ndarray, shard: tuple[int, int]) -> np.ndarray:
    """What shard (i, n) has of the leading axis."""
    index, count = shard
    return x[index * len(x) // count : (index + 1) * len(x) // count]


def _fingerprint(table: Table) -> str:
    """Identity of tokenised records: their uids and all their tokens, whatever they are padded to."""
    found = hashlib.sha256(table.uid.tobytes())
    for ids in (part for part in (table.prompts, table.chains, table.answers) if part):
        found.update(ids.sizes.astype(np.int32).tobytes())
        found.update(ids.values.tobytes())
    return found.hexdigest()[:16]


def _stream(
    table: Table,
    cfg: ExperimentConfig,
    split: str,
    assemble: Callable[[np.ndarray, tuple[int, int]], T],
    *,
    batch: int,
    shuffle: bool,
    shard: tuple[int, int],
    fingerprint: str = "",
    more: dict[str, Any] | None = None,
) -> Stream[T]:
    """Row numbers, shuffled and batched by grain, then `assemble` for this shard. more: what else identifies the stream."""
    (index, count), size = shard, len(table.gold)
    if not 0 <= index < count or batch % count:
        raise UserError(f"data: shard {index} of {count} cannot split a batch of {batch}; use a batch that {count} divides")
    if not shuffle and count > 1 and size % batch:
        raise UserError(
            f"data: {size} unshuffled {split} records leave a short last batch, which {count} shards cannot split; change the batch"
        )
    if shuffle and batch > size:
        raise UserError(f"data: a batch of {batch} from {size} {split} records would repeat records; use a smaller batch or more records")
    rows = grain.MapDataset.range(size)
    if shuffle:
        rows = rows.seed(cfg.seed).shuffle()
    rows = rows.batch(batch, drop_remainder=shuffle)  # before repeat: a record twice in a batch would be sampled with the same noise
    if shuffle:
        rows = rows.repeat()
    dataset = rows.map(lambda at: assemble(at, shard))
    identity = {"split": split, "records": size, "batch": batch, "seed": cfg.seed, "shuffle": shuffle, **(more or {})}
    target = [*table.chains[0], cfg.data.think_end_id, *table.answers[0]] if table.chains else []
    return Stream(dataset, identity, table.left_out, Example(table.prompts[0], target, table.gold[0]), fingerprint)


def describe_stream(stream: Stream[Any], tokenizer: TextTokenizer) -> str:
    """The first prompt with its target, text and tokens, and what was left out by which limit: for the log, before anything is trained."""
    first = stream.example
    parts = [f"first prompt: {prompts.describe_prompt(tokenizer, first.prompt)}"]
    parts += [f"its target: {prompts.describe_prompt(tokenizer, first.target)}"] if first.target else []
    counts = [(field, count) for field, count in stream.left_out.items() if field != "all" and count]
    why = ", ".join(f"{count} without a chain" if field == NO_CHAIN else f"{count} longer than {field}" for field, count in counts)
    left = f"{stream.dropped} left out" + (f" ({why})" if why else "")
    return "\n".join([*parts, f"its gold answer: {first.gold!r}", f"records: {stream.records} used, {left}"])


def _prompt_columns(table: Table, cfg: ExperimentConfig, tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
    tokens, mask = table.prompts.padded(cfg.data.max_prompt, prompts.pad_id(cfg.data, tokenizer), left=True)
    return {"prompt_tokens": tokens, "prompt_mask": mask, "uid": table.uid}


def _prompt_batch(columns: dict[str, np.ndarray], rows: np.ndarray) -> PromptBatch:
    return PromptBatch(tokens=columns["prompt_tokens"][rows], mask=columns["prompt_mask"][rows], uid=columns["uid"][rows])
