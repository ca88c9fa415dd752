"""Drawing: one look for all figures, as SVG inside the page (its colours follow the page's theme) and as SVG, PNG and CSV files beside it.

The only module of lgrpo that imports matplotlib. Figures are objects of their own: no global state of pyplot, so no display is needed.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lgrpo.report.series import Band, smooth
from lgrpo.runs import storage
from lgrpo.runs.storage import Place

INK, MUTED, GRID = "#1c2733", "#5c6977", "#e3e7ec"
SERIES = ("#2563a8", "#c2570c", "#0f7b55", "#7b3fa0", "#b3264c", "#8a6d00", "#0b7285", "#55606e")
DARK = ("#7db8ff", "#ffa566", "#55d6a6", "#cf9ff5", "#ff8aa7", "#e3c650", "#63d3e8", "#b4bdc9")
DASHES = ("-", (0, (6, 1.5)), (0, (2.6, 1.1)), (0, (7, 1.4, 1.6, 1.4)))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", **{colour: f"s{i}" for i, colour in enumerate(SERIES)}}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's font
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 10,
    "font.family": ["sans-serif"],
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.solid_capstyle": "round",
    "lines.linewidth": 1.7,
}
Cell = float | int | str | None | dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Style:
    """Colour and dash pattern of one group, the same in every figure."""

    index: int

    @property
    def colour(self) -> str:
        return SERIES[self.index % len(SERIES)]

    @property
    def dash(self) -> Any:
        return DASHES[self.index // len(SERIES) % len(DASHES)] if self.index >= len(SERIES) else DASHES[self.index % len(DASHES)]

    @property
    def css(self) -> str:
        return f"s{self.index % len(SERIES)}"

    @property
    def dasharray(self) -> str:
        """For the legend of the page."""
        dash = self.dash
        return "" if dash == "-" else " ".join(f"{x * 1.7:g}" for x in dash[1])


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure with everything that a reader who does not see it needs: a sentence with its numbers, and its table."""

    key: str  # file name and anchor
    title: str
    caption: str
    alt: str
    columns: list[str]
    rows: list[list[Cell]]  # of the table below the figure, exact
    draw: Callable[[Axes], None]
    legend: dict[str, Style] = dataclasses.field(default_factory=dict)  # of the files; the page has one for all figures
    height: float = 2.6
    width: float = 4.4
    note: str = ""  # above the table
    full: list[list[Cell]] | None = None  # rows of the CSV, where the table shows only some


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure and its SVG for the page."""

    figure: Figure
    svg: str


def _svg(canvas: Canvas, **options: Any) -> str:
    out = io.StringIO()
    canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, **options)
    return out.getvalue()


def inline_svg(text: str, key: str, alt_id: str) -> str:
    """matplotlib's SVG as an element of a page: colours as CSS variables, ids of its own, no fixed size, no style that leaks.

    alt_id: id of the element that says in words what the figure shows.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.S)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([\w.-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(xlink:href="#|url\(#)([\w.-]+)', rf"\g<1>{key}-\g<2>", text)
    text = re.sub(r"font-family: [^;\"]+;? ?", "", text)
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    box = re.search(r'viewBox="[^"]+"', text)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" aria-labelledby="{alt_id}">'
    return re.sub(r">\s+<", "><", re.sub(r"<svg[^>]*>", head, text, count=1)).strip()


def render(figure: Figure, folder: Place) -> Drawn:
    """Draws a figure, writes its files into `folder`, and returns it with its SVG for the page."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": figure.key}):
        canvas = Canvas(figsize=(figure.width, figure.height), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        figure.draw(axes)
        # Once, and by hand: an engine that stays would draw everything twice for each file.
        canvas.get_layout_engine().execute(canvas)
        canvas.set_layout_engine(None)
        page = inline_svg(_svg(canvas, transparent=True), figure.key, f"{figure.key}-alt")
        _add_title_and_legend(canvas, axes, figure)
        storage.write_text(folder / f"{figure.key}.svg", _svg(canvas, facecolor="white"))
        canvas.savefig(drawn := io.BytesIO(), dpi=160, facecolor="white", format="png")
        storage.write_bytes(folder / f"{figure.key}.png", drawn.getvalue())
    table = io.StringIO(newline="")
    _write_csv(table, figure)
    storage.write_text(folder / f"{figure.key}.csv", table.getvalue())
    return Drawn(figure, page)


def _add_title_and_legend(canvas: Canvas, axes: Axes, figure: Figure) -> None:
    """Makes room above and below the axes, whose place was found before."""
    box, columns = axes.get_position(), 1 if len(figure.legend) < 3 or max(map(len, figure.legend)) > 20 else 2
    above, below = 0.3, 0.12 + 0.19 * -(-len(figure.legend) // columns)
    height = figure.height + above + below
    canvas.set_size_inches(figure.width, height)
    axes.set_position((box.x0, (box.y0 * figure.height + below) / height, box.width, box.height * figure.height / height))
    canvas.text(0.02, 1 - 0.08 / height, figure.title, ha="left", va="top", fontsize=10.5, weight="bold")
    if figure.legend:
        lines = [Line2D([], [], color=s.colour, linestyle=s.dash) for s in figure.legend.values()]
        canvas.legend(lines, list(figure.legend), loc="lower left", ncols=columns, handlelength=2.6, borderaxespad=0.1)


def _write_csv(file: Any, figure: Figure) -> None:
    """Intervals take three columns."""
    rows = figure.full if figure.full is not None else figure.rows
    wide = [any(isinstance(row[i], dict) for row in rows) for i in range(len(figure.columns))]
    writer = csv.writer(file)
    writer.writerow(
        [x for name, w in zip(figure.columns, wide, strict=True) for x in ([name, f"{name} low", f"{name} high"] if w else [name])]
    )
    for row in rows:
        out: list[Any] = []
        for value, w in zip(row, wide, strict=True):
            spread = [value.get(k) for k in ("value", "low", "high")] if isinstance(value, dict) else [value, None, None]
            out += spread if w else spread[:1]
        writer.writerow(["" if x is None else x for x in out])


# -- what is drawn ------------------------------------------------------------------------------------------------------------------------


def _veil(bands: int) -> float:
    """Opacity of a band: many of them must not add up to a wall."""
    return min(0.16, 0.6 / bands)


def draw_bands(bands: Sequence[tuple[Band, Style]], *, xlabel: str, share: bool) -> Callable[[Axes], None]:
    """Curves with seeds as bands. Long ones get a moving average on top of what was logged. share: the axis starts at 0 or below."""

    def draw(axes: Axes) -> None:
        for band, style in bands:
            window = smoothing(band)
            several = band.runs > 1
            if several:
                low, high = smooth(band.low, window), smooth(band.high, window)
                axes.fill_between(band.steps, low, high, color=style.colour, alpha=_veil(len(bands)), linewidth=0)
            elif window > 1:
                axes.plot(band.steps, band.mean, color=style.colour, alpha=0.3, linewidth=0.8)
            marker = "o" if len(band.steps) < 2 else None
            axes.plot(band.steps, smooth(band.mean, window), color=style.colour, linestyle=style.dash, marker=marker, markersize=4)
        axes.set_xlabel(xlabel, fontsize=9.5)
        axes.margins(x=0.01)
        if share:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))

    return draw


def smoothing(band: Band) -> int:
    """Window of the moving average: odd, about a twentieth of the run, 1 (none) below 60 points."""
    return 1 if len(band.steps) < 60 else len(band.steps) // 20 | 1


def draw_lines(
    lines: Sequence[tuple[Sequence[float], Sequence[dict[str, Any]], Style]], *, xlabel: str, integer: bool
) -> Callable[[Axes], None]:
    """Intervals over x, as lines with a band. lines: (x, intervals, style)."""

    def draw(axes: Axes) -> None:
        for x, cells, style in lines:
            y = [c["value"] for c in cells]
            axes.fill_between(
                x, [c["low"] for c in cells], [c["high"] for c in cells], color=style.colour, alpha=_veil(len(lines)), linewidth=0
            )
            axes.plot(x, y, color=style.colour, linestyle=style.dash, marker="o", markersize=3.5)
        if integer:
            axes.set_xticks(sorted({v for x, _, _ in lines for v in x})[:16])
        axes.set_xlabel(xlabel, fontsize=9.5)

    return draw


def draw_bins(
    labels: Sequence[str], lines: Sequence[tuple[Sequence[str], Sequence[float], Sequence[float], Style]]
) -> Callable[[Axes], None]:
    """Histograms as steps over named bins, before (pale) and after. lines: (bins, before, after, style)."""

    def draw(axes: Axes) -> None:
        place = {label: i for i, label in enumerate(labels)}
        for bins, before, after, style in lines:
            x = [place[b] for b in bins]
            axes.plot(x, before, color=style.colour, alpha=0.35, linewidth=1, drawstyle="steps-mid")
            axes.plot(x, after, color=style.colour, linestyle=style.dash, drawstyle="steps-mid")
        shown = range(0, len(labels), -(-len(labels) // 8))
        axes.set_xticks(list(shown), [shorten(labels[i], 10) for i in shown], fontsize=8)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))

    return draw


def draw_dots(
    rows: Sequence[tuple[str, Sequence[tuple[dict[str, Any], Style, str]]]], *, xlabel: str, zero: bool = False
) -> Callable[[Axes], None]:
    """A line per row with one or more intervals on it. rows: (name, [(interval, style, marker)])."""

    def draw(axes: Axes) -> None:
        for at, (_, cells) in enumerate(rows):
            for j, (cell, style, marker) in enumerate(cells):
                y = at + (j - (len(cells) - 1) / 2) * 0.28
                if cell["low"] is not None and cell["high"] is not None:
                    axes.plot([cell["low"], cell["high"]], [y, y], color=style.colour, linewidth=1.6)
                face = style.colour if marker == "o" else "none"
                axes.plot([cell["value"]], [y], marker="o", markersize=5.5, color=style.colour, markerfacecolor=face, linestyle="none")
        if zero:
            axes.axvline(0.0, color=MUTED, linewidth=1)
        axes.set_yticks(range(len(rows)), [shorten(name, 30) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(xlabel, fontsize=9.5)

    return draw


def draw_scatter(points: Sequence[tuple[dict[str, Any], dict[str, Any], Style]], *, xlabel: str, ylabel: str) -> Callable[[Axes], None]:
    """Points with the intervals of y. points: (x interval, y interval, style)."""

    def draw(axes: Axes) -> None:
        for x, y, style in points:
            if y["low"] is not None:
                axes.plot([x["value"]] * 2, [y["low"], y["high"]], color=style.colour, linewidth=1.4, alpha=0.8)
            axes.plot([x["value"]], [y["value"]], marker="osD^"[style.index % 4], markersize=6, color=style.colour, linestyle="none")
        axes.set_xlim(left=0.0, right=axes.get_xlim()[1] * 1.05)
        axes.set_xlabel(xlabel, fontsize=9.5)
        axes.set_ylabel(ylabel, fontsize=9.5)

    return draw


def draw_stacks(rows: Sequence[tuple[str, Sequence[float]]], parts: Sequence[str], *, xlabel: str) -> Callable[[Axes], None]:
    """Horizontal bars in parts, with a legend of the parts. rows: (name, a length for each part)."""

    def draw(axes: Axes) -> None:
        left = np.zeros(len(rows))
        for i, part in enumerate(parts):
            lengths = np.array([values[i] for _, values in rows])
            axes.barh(range(len(rows)), lengths, left=left, height=0.62, color=SERIES[(0, 2, 1, 7)[i % 4]], label=part, linewidth=0)
            left += lengths
        axes.set_yticks(range(len(rows)), [shorten(name, 30) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(xlabel, fontsize=9.5)
        axes.legend(ncols=len(parts), loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, handlelength=1, columnspacing=1.2)

    return draw


def shorten(text: str, most: int) -> str:
    """The text, or its two ends."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"
