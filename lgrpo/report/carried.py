"""What the thinking carries: the arms of an evaluation as a table, and accuracy over the steps of thinking that are kept."""

from __future__ import annotations

from typing import Any

from lgrpo.report import plots
from lgrpo.report.evaluations import Comparison
from lgrpo.report.figures import Styles, anchor, number
from lgrpo.report.plots import Figure

COLUMNS = ("run", "arm", "answer tokens at most", "accuracy", "change against free", "another answer", "steps of thinking", "answer tokens")
_PARTS = ("accuracy", "change", "answer_changed", "chain_tokens", "answer_tokens")
_BUDGETED = ("forced", "floor")


def _budget(about: dict[str, Any]) -> Any:
    return about.get("answer_budget") or "all"


def arms_table(found: Comparison) -> list[dict[str, Any]]:
    """One table for the page, a row for each run and arm; [] where no evaluation has arms."""
    rows = [
        [
            row.label,
            name,
            _budget(row.about) if name in _BUDGETED else "all",
            *(row.read(lambda result, n=name, p=part: result.get("arms", {}).get(n, {}).get(p)) for part in _PARTS),
        ]
        for row in found.arms
        for name in row.names("arms")
    ]
    return [{"title": "What the thinking carries: noise-free arms", "columns": list(COLUMNS), "rows": rows}] if rows else []


def curve(found: Comparison, styles: Styles) -> Figure | None:
    """Accuracy by steps of thinking that are kept."""
    lines, rows, legend = [], [], {}
    for row in found.arms:
        kept = sorted(row.names("curve"), key=int)
        cells = [row.read(lambda result, k=k: result.get("curve", {}).get(k, {}).get("accuracy")) for k in kept]
        if kept:
            legend[row.label] = styles[row.group.label]
            lines.append(([int(k) for k in kept], cells, legend[row.label]))
            rows += [[row.label, int(k), cell, _budget(row.about)] for k, cell in zip(kept, cells, strict=True)]
    if not lines:
        return None
    return Figure(
        key="kept-steps" if found.key == "eval" else anchor(f"{found.key}-kept-steps"),
        title="Accuracy by steps of thinking kept",
        caption="Noise-free pass@1 when thinking is ended by force after so many steps (latents, or tokens of an explicit chain) and the answer may "
        f"take the tokens that the table says. 95 % over problems for a single run; lowest to highest seed where there are several. {found.title}.",
        alt="pass@1 by steps kept. " + "; ".join(f"{label} at {k}: {number(cell['value'])}" for label, k, cell, _ in rows) + ".",
        columns=["run", "steps kept", "pass@1", "answer tokens at most"],
        rows=rows,
        width=5.6,
        draw=plots.draw_lines(lines, xlabel="steps of thinking kept", integer=True),
        legend=legend,
    )
