"""Writes tests/golden/sharding/*.txt: python -m tests.golden.make_sharding. Look at the diff before committing it."""

from pathlib import Path

from lgrpo.config import ExperimentConfig
from lgrpo.config.overrides import apply_diff, load_experiment
from lgrpo.train.layout import table

ROOT = Path(__file__).parents[2] / "experiments"
FOLDER = Path(__file__).parent / "sharding"
DEVICES = (8, 64, 256)
HYBRID = {"mesh.data": -1, "mesh.fsdp": 4, "mesh.tensor": 2}
# file: (experiment, changed settings, RL or supervised)
VARIANTS: dict[str, tuple[str, dict, bool]] = {
    "gsm8k_llama1b_hybrid": ("gsm8k_llama1b.py", HYBRID, True),
    "math_qwen7b_hybrid": ("math_qwen7b.py", HYBRID, True),
    "latent_sft_union_hybrid": ("latent_sft/union.py", HYBRID, False),
    "latent_sft_union_lora": ("latent_sft/union.py", HYBRID | {"sft.lora.rank": 8}, False),
}
MODULES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py") if "def get_config" in p.read_text())
CASES = {"_".join(p.with_suffix("").parts): (str(p), {}, "sft" not in str(p)) for p in MODULES} | VARIANTS
"""Every experiment as it is, and variants."""


def config(name: str) -> ExperimentConfig:
    """Of a case."""
    path, changes, _ = CASES[name]
    return apply_diff(load_experiment(ROOT / path), changes)


def text(name: str) -> str:
    """The tables of a case."""
    path, changes, rl = CASES[name]
    options = "".join(f" --{k.replace('_', '-')} {v}" for k, v in changes.items())
    command = (
        f"python -m lgrpo check experiments/{path} --kind {'train' if rl else 'sft'} --mesh-table {' '.join(map(str, DEVICES))}{options}"
    )
    return "\n\n".join([command, *(table(config(name), n, rl=rl) for n in DEVICES)]) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for case in CASES:
        (FOLDER / f"{case}.txt").write_text(text(case))
