"""The bars of the project: ratios that must be reached, each within one workload of one run."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.plan import LATENT_SHAPES, PEERS_A, latent_key
from benchmarks.timing import spread

Jobs = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Bar:
    """quantity(numerator) / quantity(denominator) against `limit`; of several numerators the smallest counts, that is the best peer."""

    workload: str
    text: str
    numerator: tuple[str, ...]
    denominator: str
    limit: float
    quantity: str = "seconds"  # or peak_rss_bytes
    at_most: bool = False


def _latent_bars() -> list[Bar]:
    bars = []
    for rows, vocab in LATENT_SHAPES:
        peer = (latent_key("torch", rows, vocab),)
        for step, limit in (("paper", 3.0), ("exact", 10.0)):
            text = f"latent step [{rows}, {vocab}], {step} noise, against the authors' operations in torch"
            bars.append(Bar("C", text, peer, latent_key(step, rows, vocab), limit))
    return bars


BARS = [
    Bar("A", "explicit rollout against Hugging Face generate (the faster cache)", PEERS_A, "A/lgrpo-explicit", 4.0),
    Bar("A", "explicit rollout against tunix's sampler", ("A/tunix",), "A/lgrpo-explicit", 5.0),
    Bar("A", "latent rollout (exact) as a share of the explicit rate", ("A/lgrpo-explicit",), "A/lgrpo-exact", 0.9),
    Bar("A", "latent rollout (paper) as a share of the explicit rate", ("A/lgrpo-explicit",), "A/lgrpo-paper", 0.45),
    Bar("B", "update against torch with full logits", ("B/torch-full",), "B/lgrpo", 1.8),
    Bar("B", "the same with frozen tables, as in RL", ("B/torch-full-frozen",), "B/lgrpo-frozen", 2.2),
    Bar(
        "B", "peak memory of the update as a share of torch's", ("B/lgrpo",), "B/torch-full", 1 / 3, quantity="peak_rss_bytes", at_most=True
    ),
    Bar("B", "update against JAX with full logits and tiled prompts", ("B/jax-full",), "B/lgrpo", 2.2),
    *_latent_bars(),
]


def _range(record: dict[str, Any], quantity: str) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile) of a quantity."""
    if quantity != "seconds":
        return (record[quantity],) * 3
    found = spread(record["seconds"])
    return found["median_s"], *found["quartiles_s"]


def _cpu(record: dict[str, Any]) -> float:
    return spread(record["cpu_seconds"])["median_s"]


def evaluate(bar: Bar, jobs: Jobs) -> dict[str, Any]:
    """Ratio of medians, its range over the quartiles, and whether the bar is met; None where something was not measured.

    cpu_ratio is the same ratio of CPU seconds: where it is far from `ratio`, others had the machine and the run does not count for much.
    """
    verdict = {"text": bar.text, "limit": bar.limit, "at_most": bar.at_most, "ratio": None, "range": None, "cpu_ratio": None, "met": None}
    usable = {key: record for key, record in jobs.items() if "error" not in record}
    if bar.denominator not in usable or not any(key in usable for key in bar.numerator):
        return verdict
    peer = min((usable[key] for key in bar.numerator if key in usable), key=lambda record: _range(record, bar.quantity)[0])
    best, own = _range(peer, bar.quantity), _range(usable[bar.denominator], bar.quantity)
    ratio = best[0] / own[0]
    met = ratio <= bar.limit if bar.at_most else ratio >= bar.limit
    found = {"ratio": ratio, "range": [best[1] / own[2], best[2] / own[1]], "met": met}
    if bar.quantity == "seconds":
        found["cpu_ratio"] = _cpu(peer) / max(_cpu(usable[bar.denominator]), 1e-9)
    return verdict | found


def evaluate_all(workload: str, jobs: Jobs) -> list[dict[str, Any]]:
    """Every bar of one workload."""
    return [evaluate(bar, jobs) for bar in BARS if bar.workload == workload]


def describe(verdict: dict[str, Any]) -> str:
    """One line: text, limit, measured ratio with its range, met or missed."""
    sign = "at most" if verdict["at_most"] else "at least"
    head = f"{verdict['text']}: {sign} {verdict['limit']:.3g}"
    if verdict["ratio"] is None:
        return f"{head}, not measured"
    low, high = verdict["range"]
    spread_text = "" if low == high else f" ({low:.2f} - {high:.2f})"
    if verdict["cpu_ratio"] is not None:
        spread_text += f" [CPU seconds {verdict['cpu_ratio']:.2f}]"
    return f"{head}, measured {verdict['ratio']:.2f}{spread_text}, {'met' if verdict['met'] else 'MISSED'}"
