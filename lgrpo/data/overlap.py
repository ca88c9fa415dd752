"""Problems that training and evaluation share: compared by a hash of their text, typography aside."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from lgrpo.config import DataConfig
from lgrpo.data.registry import normal_text
from lgrpo.data.sources import Record, load_records
from lgrpo.runs.metrics import summary_table


def problem_hash(problem: str) -> str:
    """128 bits of the normalised text, in hex."""
    return hashlib.blake2b(normal_text(problem).encode(), digest_size=16).hexdigest()


def _by_hash(records: Sequence[Record]) -> dict[str, int]:
    """Hash -> uid of the first record that has it."""
    out: dict[str, int] = {}
    for record in records:
        out.setdefault(problem_hash(record["problem"]), record["uid"])
    return out


def overlap_report(data_cfg: DataConfig, train_split: str, eval_splits: Sequence[str]) -> dict[str, Any]:
    """What the training split shares with each evaluation split, and how often each repeats itself.

    Splits as in data.eval_split. JSON-able: {"train": {...}, "eval": {split: {records, repeated, shared, pairs: [{train, eval, problem}]}}};
    pairs carry uids. Errors: UserError from loading.
    """
    records = load_records(data_cfg, train_split)
    train = _by_hash(records)
    report: dict[str, Any] = {
        "train": {"split": train_split, "records": len(records), "repeated": len(records) - len(train)},
        "eval": {},
    }
    for split in eval_splits:
        records = load_records(data_cfg, split)
        own = _by_hash(records)
        hashes = [(record, problem_hash(record["problem"])) for record in records]
        pairs = [{"train": train[h], "eval": r["uid"], "problem": r["problem"]} for r, h in hashes if h in train]
        report["eval"][split] = {"records": len(records), "repeated": len(records) - len(own), "shared": len(pairs), "pairs": pairs}
    return report


def overlap_table(report: dict[str, Any]) -> str:
    """The report as text."""
    train = report["train"]
    rows = [
        {"split": f"{train['split']} (train)", "records": train["records"], "repeated": train["repeated"], "shared": "-", "example": "-"}
    ]
    for split, found in report["eval"].items():
        example = found["pairs"][0]["problem"][:60] if found["pairs"] else "-"
        rows.append({"split": split, **{k: found[k] for k in ("records", "repeated", "shared")}, "example": example})
    return summary_table(rows, ["split", "records", "repeated", "shared", "example"])
