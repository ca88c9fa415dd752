"""Answers graded per second of one core, without LaTeX workers. Run: python -m benchmarks.grading [--answers N]

The figures depend on the machine: compare two versions on the same one, in turns.
"""

from __future__ import annotations

import argparse
import time

from lgrpo.config import DataConfig
from lgrpo.rewards.grade import grade_all

FORMS = {
    "#### 42": "so it is {n}.\n#### {n}",
    "\\boxed{42}": "Adding up gives \\boxed{{{n}}}.",
    "in a sentence": "She has 3 + 4 = {n} apples.",
    "$1,042.00": "#### ${n:,}.00",
    "fraction": "\\boxed{{\\frac{{{double}}}{{2}}}}",
    "wrong": "#### {double}",
}


def main() -> None:
    """Prints a line for each way to write a number: the best of five."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=5000)
    args = parser.parse_args()
    numbers = range(1, args.answers + 1)
    golds, cfg = [str(n) for n in numbers], DataConfig(grader="math")
    for name, form in FORMS.items():
        texts = [form.format(n=n, double=2 * n) for n in numbers]
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            right = sum(v.correct for v in grade_all(texts, golds, cfg))
            best = min(best, time.process_time() - start)
        print(f"{name:15} {args.answers / best:10.0f} answers/s   {right} right")


if __name__ == "__main__":
    main()
