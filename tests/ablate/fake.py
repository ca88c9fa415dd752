"""Stands for `python -m lgrpo` where a test is about the runner: writes a run's files without training. Run: python fake.py train|eval EXPERIMENT --workdir W

What is to go wrong stands in W/../../orders.json as {"cell/seed0:train": ORDER}; each order is carried out once.
"""

import json
import os
import random
import signal
import sys
import zlib
from pathlib import Path

PROBLEMS, SAMPLES = 12, 2


def take_order(root, name):
    path = root / "orders.json"
    orders = json.loads(path.read_text()) if path.exists() else {}
    order = orders.pop(name, None)
    if order:
        path.write_text(json.dumps(orders))
    return order


def rows(rng, better):
    for how, samples in (("noise_free", 1), ("sampled", SAMPLES)):
        for uid in range(PROBLEMS):
            for sample in range(samples):
                right = int(rng.random() < 0.3 + 0.4 * better)
                lengths = {"chain_tokens": 3, "latent_steps": rng.randrange(9), "answer_tokens": 2, "completion_tokens": 5}
                row = {"pass": how, "uid": uid, "sample": sample, "gold": str(uid), "correct": right, "answer": "1", "category": ""}
                yield row | {"finish": "EOS", "forced": False} | lengths


def interval(values):
    value = sum(values) / len(values)
    return {"value": value, "low": value, "high": value}


def main():
    step, experiment, _, workdir = sys.argv[1:]
    workdir = Path(workdir)
    cfg = json.loads((Path(experiment).parent / "cell.json").read_text())
    name = f"{cfg['name']}/seed{cfg['seed']}:{step}"
    root = workdir.parents[1]
    order = take_order(root, name)
    with (root / "calls").open("a") as file:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        file.write(json.dumps({"name": name, "order": order, "cores": cores, "init_from": cfg["train"]["init_from"]}) + "\n")
    if order == "fail":
        sys.exit("error: it does not work")
    if order == "preempted":
        sys.exit(75)
    if order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "kill_ablation":
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    if order == "stop_ablation":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()
    rng = random.Random(zlib.crc32(name.encode()))
    if step == "train":
        lines = [{"step": i, "reward/mean": rng.random(), "time/step_s": 1.0} for i in range(1, 21)]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    found = list(rows(rng, cfg["name"] == "better"))
    result = {}
    for how in ("noise_free", "sampled"):
        part = [row for row in found if row["pass"] == how]
        result[how] = {"pass@1": interval([r["correct"] for r in part]), "latent_steps": interval([r["latent_steps"] for r in part])}
        result[how]["invalid_frac"] = interval([0.0])
    (workdir / "eval").mkdir(exist_ok=True)
    (workdir / "eval" / "eval.json").write_text(json.dumps(result))
    (workdir / "eval" / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


if __name__ == "__main__":
    main()
