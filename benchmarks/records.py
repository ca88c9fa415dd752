"""What it costs to read and tokenise the records of a supervised run. Run: python -m benchmarks.records [--records N] [--tokenizer DIR --eos TEXT]

Stories of the embedded task, made different from each other, as JSON lines; prompts, chains and answers. The tokenizer's threads share its part
(RAYON_NUM_THREADS says how many); a chat template is rendered in one process and the rest is done in one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lgrpo.config import DataConfig, ExperimentConfig, SftConfig
from lgrpo.data import prompts, word_problems
from lgrpo.data.pipeline import sft_stream
from lgrpo.data.ragged import Ragged

STORIES = 8000


def write_records(file: Path, count: int) -> None:
    """`count` records, no two of them alike."""
    stories = [word_problems.generate("medium", "train", i) for i in range(min(count, STORIES))]
    with file.open("w") as out:
        for i in range(count):
            story = stories[i % len(stories)]
            problem = story["problem"].replace(". ", f". In shop {i} of row {i * 7919 % 1000}: ", 1)
            out.write(json.dumps({"problem": problem, "cot": story["cot"], "answer": story["answer"]}) + "\n")


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


@dataclasses.dataclass(frozen=True)
class Timed(prompts.TextTokenizer):
    """Notes (CPU seconds, wall seconds, tokens) of each batch."""

    spent: list[tuple[float, float, int]] = dataclasses.field(default_factory=list)

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        cpu, wall = _cpu(resource.RUSAGE_SELF), time.perf_counter()
        ids = super().encode_batch(texts)
        self.spent.append((_cpu(resource.RUSAGE_SELF) - cpu, time.perf_counter() - wall, len(ids.values)))
        return ids


def main() -> None:
    """Prints a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=400_000)
    parser.add_argument("--tokenizer", default="embedded")
    parser.add_argument("--template", choices=("plain", "instruct", "chat"), default="plain")
    parser.add_argument("--eos", default=DataConfig.eos)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder) / "train.jsonl", args.records)
        data = DataConfig(source="jsonl", path=folder, tokenizer=args.tokenizer, template=args.template, eos=args.eos, max_prompt=256)
        cfg = ExperimentConfig(data=data, sft=SftConfig(stage="explicit", max_chain=64, max_answer=16))
        found = prompts.load_tokenizer(cfg.data)
        timed = Timed(found.inner, found.name, found.chat)
        cfg = prompts.resolve(cfg, timed)
        children, own, wall = _cpu(resource.RUSAGE_CHILDREN), _cpu(resource.RUSAGE_SELF), time.perf_counter()
        stream = sft_stream(cfg, timed, "train", batch=8)
        wall, own, children = time.perf_counter() - wall, _cpu(resource.RUSAGE_SELF) - own, _cpu(resource.RUSAGE_CHILDREN) - children
    encoding, apart, tokens = (sum(part) for part in zip(*timed.spent, strict=True))
    print(f"{stream.records} records, {tokens / 1e6:.1f} million tokens, {found.name}, template {args.template}, data {stream.fingerprint}")
    for name, cpu, seconds in (
        ("tokenizer (its threads)", encoding, f"{apart:8.1f}"),
        ("chat template (one process)", children, ""),
        ("all else (one thread)", own - encoding, ""),
        ("together", own + children, f"{wall:8.1f}"),
    ):
        print(f"{name:28} {cpu:8.1f} CPU s  {seconds}{' wall s' if seconds else ''}".rstrip())
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
