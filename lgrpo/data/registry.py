"""The data sets that lgrpo knows by name: where they come from, what their rows mean, how many there are and what they hash to.

`data.source` takes these names. A split of another set is written NAME/SPLIT, e.g. data.eval_split = "svamp/test". Everything is prepared by
one tfds builder (builders/benchmarks) from the public source, or from files at data.path. No data is committed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from lgrpo.data.fields import answer_of
from lgrpo.errors import UserError

Row = Mapping[str, Any]
Fields = dict[str, str]  # problem, cot, answer
_ANNOTATION = re.compile(r"<<[^>]*>>")
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
CHOICE_INSTRUCTION = "Please reason step by step, and put the letter of your final answer within \\boxed{}."


@dataclasses.dataclass(frozen=True)
class Split:
    """One split. rows: records after conversion. sha256: fingerprint() of them; empty where no copy was at hand to compute it."""

    urls: tuple[str, ...]
    rows: int
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Mirror:
    """The same records elsewhere and in another form, for when the first place cannot be read. Checked against the same counts and fingerprints."""

    urls: dict[str, tuple[str, ...]]  # by split, every one of the data set
    read: Callable[[int, Row], Fields]
    columns: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One data set."""

    splits: dict[str, Split]
    read: Callable[[int, Row], Fields]
    """A row of the public file, and its number, as problem, chain and answer. Errors: ValueError, or what a missing column raises."""
    columns: tuple[str, ...]
    """Columns that the public file must have."""
    license: str
    homepage: str
    answer: Literal["number", "latex", "choice"]
    """What a gold answer is."""
    grader: Literal["numeric", "math", "choice"]
    """data.grader that fits it."""
    instruction: str = INSTRUCTION
    """Stands before the problem where data.template is instruct or chat."""
    mirrors: tuple[Mirror, ...] = ()

    def reader(self, row: Row) -> Callable[[int, Row], Fields] | None:
        """What reads a row with these columns; None where no known form of the file has them."""
        forms = [(self.columns, self.read), *((mirror.columns, mirror.read) for mirror in self.mirrors)]
        return next((read for columns, read in forms if all(column in row for column in columns)), None)


# -- rows of the public files ---------------------------------------------------------------------------------------------------------------


def _answer(value: Any) -> str:
    """Numbers as people write them: 3.0 is 3; text as it is. Errors: ValueError for anything else."""
    text = answer_of(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else text.strip()


def _parted(text: str) -> tuple[str, str]:
    """What stands before and after the one `####` of a solution. Errors: ValueError when there is none, or several."""
    parts = text.split("####")
    if len(parts) != 2:
        raise ValueError("no `####` before the answer" if len(parts) < 2 else f"`####` is there {len(parts) - 1} times")
    return parts[0].strip(), parts[1].strip().replace(",", "")


def _gsm8k(_: int, row: Row) -> Fields:
    solution, answer = _parted(row["answer"])
    return {"problem": row["question"], "cot": " ".join(_ANNOTATION.findall(solution)), "answer": answer}


def _gsm8k_aug(_: int, row: Row) -> Fields:
    """Lines `problem||<<1+2=3>> <<3*2=6>> #### 6`, read as one column."""
    parts = row["line"].split("||")
    if len(parts) != 2:
        raise ValueError("no `||` between problem and chain" if len(parts) < 2 else f"`||` is there {len(parts) - 1} times")
    cot, answer = _parted(parts[1])
    return {"problem": parts[0].strip(), "cot": cot, "answer": answer}


def _gsm8k_aug_steps(_: int, row: Row) -> Fields:
    return {"problem": row["question"].strip(), "cot": " ".join(row["steps"]), "answer": _answer(row["answer"]).replace(",", "")}


def _gsm_hard(_: int, row: Row) -> Fields:
    return {"problem": row["input"], "cot": "", "answer": answer_of(row["target"])}


def _svamp(_: int, row: Row) -> Fields:
    body = row["Body"].strip()
    return {
        "problem": f"{body if body.endswith('.') else body + '.'} {row['Question'].strip()}",
        "cot": "",
        "answer": _answer(row["Answer"]),
    }


def _multiarith(_: int, row: Row) -> Fields:
    return {"problem": row["sQuestion"].strip(), "cot": "", "answer": _answer(row["lSolutions"][0])}


def _problem_answer(_: int, row: Row) -> Fields:
    return {"problem": row["problem"], "cot": "", "answer": _answer(row["answer"])}


def _question_answer(_: int, row: Row) -> Fields:
    return {"problem": row["question"], "cot": "", "answer": _answer(row["answer"])}


def _gpqa(index: int, row: Row) -> Fields:
    """Options in the order of the authors' evaluation: shuffled with Random(42 + row number), so that no letter is favoured."""
    options = [row[name].strip() for name in ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")]
    order = list(range(4))
    random.Random(42 + index).shuffle(order)
    lines = [f"{letter}. {options[at]}" for letter, at in zip("ABCD", order, strict=True)]
    return {"problem": "\n".join([row["Question"].strip(), "", *lines]), "cot": "", "answer": "ABCD"[order.index(0)]}


def _dapo(_: int, row: Row) -> Fields:
    return {"problem": row["prompt"].strip(), "cot": "", "answer": _answer(row["solution"])}


# -- the table ------------------------------------------------------------------------------------------------------------------------------

_GSM = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"
_AUG = "https://media.githubusercontent.com/media/da03/Internalize_CoT_Step_by_Step/e06a32ee5e4cd117171daeb4755d2a97ece62761/data/gsm8k/"
_AUG_SMALL = _AUG.replace("media.githubusercontent.com/media", "raw.githubusercontent.com")
_HUB = "https://huggingface.co/datasets/"
_AUG_PARTS = {"train": "train", "valid": "validation", "test": "test"}
_AUG_MIRROR = {
    split: (f"{_HUB}whynlp/gsm8k-aug/resolve/refs%2Fconvert%2Fparquet/default/{part}/0000.parquet",) for split, part in _AUG_PARTS.items()
}
_QWEN = "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/main/evaluation/data/"

DATA_SETS: dict[str, DataSet] = {
    "gsm8k": DataSet(
        {
            "train": Split((_GSM + "train.jsonl",), 7473, "2fd8f80a4dc28537b57c00c3698a35c152123fef3175915a09a3c771e4e31b2c"),
            "test": Split((_GSM + "test.jsonl",), 1319, "efce43df413f1e40f08b449b914efd4145caf732dbc8badc8756cb04fa68a8a6"),
        },
        *(_gsm8k, ("question", "answer"), "MIT", "https://github.com/openai/grade-school-math", "number", "numeric"),
    ),
    "gsm8k_aug": DataSet(
        {
            "train": Split((_AUG + "train.txt",), 385620),
            "valid": Split((_AUG_SMALL + "valid.txt",), 500, "93e8c2d21d3940356529ed6720ab3cb025f5f05115bf6321b9b88b9eb96ec397"),
            "test": Split((_AUG_SMALL + "test.txt",), 1319, "efce43df413f1e40f08b449b914efd4145caf732dbc8badc8756cb04fa68a8a6"),
        },
        *(_gsm8k_aug, ("line",), "MIT", "https://github.com/da03/Internalize_CoT_Step_by_Step", "number", "numeric"),
        mirrors=(Mirror(_AUG_MIRROR, _gsm8k_aug_steps, ("question", "steps", "answer")),),
    ),
    "gsm_hard": DataSet(
        {
            "test": Split(
                (_HUB + "reasoning-machines/gsm-hard/resolve/main/gsmhardv2.jsonl",),
                1319,
                "1a7ff5a5f94bd54c836937dbf16e7e5f99a26e027316bbf63c678a13497cf6db",
            )
        },
        *(_gsm_hard, ("input", "target"), "MIT", "https://github.com/reasoning-machines/pal", "number", "numeric"),
    ),
    "svamp": DataSet(
        {"test": Split((_QWEN + "svamp/test.json",), 1000, "858bf170ec55429a05e7b94085485bffac08e5a0d1e4ef805dc7bf66495ce9b0")},
        *(_svamp, ("Body", "Question", "Answer"), "MIT", "https://github.com/arkilpatel/SVAMP", "number", "numeric"),
    ),
    "multiarith": DataSet(
        {
            "test": Split(
                ("https://raw.githubusercontent.com/kojima-takeshi188/zero_shot_cot/main/dataset/MultiArith/MultiArith.json",),
                600,
                "6fba6957f2d375f4d867d8d6694c9419f22c9f9e69351634dcd5d4cdc374c5ba",
            )
        },
        *(_multiarith, ("sQuestion", "lSolutions"), "not stated (part of MAWPS)", "https://github.com/sroy9/mawps", "number", "numeric"),
    ),
    "math500": DataSet(
        {"test": Split((_HUB + "HuggingFaceH4/MATH-500/resolve/main/test.jsonl",), 500)},
        *(_problem_answer, ("problem", "answer"), "MIT", "https://github.com/openai/prm800k", "latex", "math"),
    ),
    "aime24": DataSet(
        {"test": Split((_QWEN + "aime24/test.jsonl",), 30, "6ed40550493b6d872b0561b741fb037a273fa6cfe7d59897afd97e4252ca0950")},
        *(_problem_answer, ("problem", "answer"), "problems (c) MAA", "https://github.com/QwenLM/Qwen2.5-Math", "number", "math"),
    ),
    "aime25": DataSet(
        {"test": Split(tuple(_HUB + f"opencompass/AIME2025/resolve/main/aime2025-{part}.jsonl" for part in ("I", "II")), 30)},
        *(_question_answer, ("question", "answer"), "MIT; problems (c) MAA", _HUB + "opencompass/AIME2025", "number", "math"),
    ),
    "gpqa_diamond": DataSet(
        {"test": Split(("https://openaipublic.blob.core.windows.net/simple-evals/gpqa_diamond.csv",), 198)},
        *(_gpqa, ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")),
        *("CC BY 4.0; the authors ask not to publish examples", "https://github.com/idavidrein/gpqa", "choice", "choice"),
        instruction=CHOICE_INSTRUCTION,
    ),
    "dapo_math_17k": DataSet(
        {"train": Split((_HUB + "open-r1/DAPO-Math-17k-Processed/resolve/main/en/train-00000-of-00001.parquet",), 14116)},
        *(_dapo, ("prompt", "solution"), "Apache-2.0", "https://dapo-sia.github.io", "number", "math"),
    ),
}
"""DAPO-Math-17k is its deduplicated English part, as in the paper's runs. Row counts of math500, aime25, gpqa_diamond, dapo_math_17k and of the
training split of gsm8k_aug are those that their publishers state."""


def locate(source: str, split: str) -> tuple[str, str]:
    """(source, split) of a split name that may carry a source of its own: ("gsm8k", "svamp/test") -> ("svamp", "test").

    Errors: UserError for a prefix that is no registered data set.
    """
    name, slash, rest = split.partition("/")
    if not slash or (source == "jsonl" and name not in DATA_SETS):  # a folder of JSON lines may have folders inside
        return source, split
    if name not in DATA_SETS:
        raise UserError(f"data: split {split!r}: {name!r} is no data set; use one of {', '.join(DATA_SETS)}")
    return name, rest


def instruction_of(source: str, split: str) -> str:
    """Instruction for the problems of a split, the general one for unregistered sources."""
    name, _ = locate(source, split)
    return DATA_SETS[name].instruction if name in DATA_SETS else INSTRUCTION


# -- fingerprints ---------------------------------------------------------------------------------------------------------------------------


def normal_text(text: str) -> str:
    """Problem text up to typography: NFKC, plain quotes, lower case, single blanks. What two copies of a problem have in common."""
    text = unicodedata.normalize("NFKC", text).translate({0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"'})
    return " ".join(text.casefold().split())


def _normal_answer(answer: str) -> str:
    """Numbers to six digits, as some copies print no more; other text without blanks at the ends."""
    try:
        return f"{float(answer.replace(',', '')):.6g}"
    except ValueError:
        return answer.strip()


def fingerprint(records: Iterable[Mapping[str, Any]]) -> str:
    """sha256 over problems and answers, typography and order aside, so that every faithful copy of a split has the same one."""
    lines = sorted(json.dumps([normal_text(r["problem"]), _normal_answer(r["answer"])]) for r in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_split(name: str, split: str, records: list[Fields], where: str) -> None:
    """Errors: UserError when the records of `name`/`split`, read from `where`, are not those that the registry describes."""
    known = DATA_SETS[name].splits[split]
    mend = "give the original file, or read your own with data.source=jsonl"
    if len(records) != known.rows:
        raise UserError(f"{where}: {len(records)} records, but {name}/{split} has {known.rows}; {mend}")
    if known.sha256 and (found := fingerprint(records)) != known.sha256:
        raise UserError(f"{where}: fingerprint {found[:12]}..., but {name}/{split} has {known.sha256[:12]}...; {mend}")
