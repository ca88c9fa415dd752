"""The demo over several seeds, and one table of all.

Run: python -m experiments.demo.seeds --workdir runs/demo-seeds [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from experiments.demo.__main__ import STAGES, run_demo, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo.seeds", description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/demo-seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    rows = {}
    for seed in args.seeds:
        folder = args.workdir / f"seed{seed}"
        if code := run_demo(folder, seed):
            return code
        results = json.loads((folder / "results.json").read_text())
        rows |= {f"{name}, seed {seed}": results[name] for name in STAGES}
    print("\n" + table(dict(sorted(rows.items()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
