"""The figure docs/demo.svg, from the table of docs/demo.md: python docs/figure.py"""

import pathlib
import re

import matplotlib
from matplotlib.figure import Figure

matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "lgrpo"}  # text stays text, and the same numbers give the same file
HERE = pathlib.Path(__file__).parent
ROW = re.compile(r"^\| ([\w -]+) \| ([\d.]+) \[([\d.]+), ([\d.]+)\] \| [^|]+\| ([\d.]+) \| [\d.]+ \| ([\d.e]+) \|$", re.M)
# (its start, its end, colour, what a chain is made of, what came before the start)
ARROWS = (
    ("explicit SFT", "explicit GRPO", "#b5541c", "tokens", ()),
    ("Latent-SFT", "Latent-GRPO", "#1f6f8b", "mixtures", ("explicit SFT",)),
)


def table():
    """Model -> pass@1, its interval, length of a chain, FLOP of its stage."""
    rows = ROW.findall((HERE / "demo.md").read_text())
    return {name: [float(x) for x in numbers] for name, *numbers in rows}


def draw(rows):
    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    axis = figure.subplots()
    for start, end, colour, unit, before in ARROWS:
        spent, points = sum(rows[name][4] for name in before), []
        for name in (start, end):
            value, low, high, length, flop = rows[name]
            spent += flop
            points.append((spent / 1e12, value))
            axis.errorbar(*points[-1], yerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
            text, side = f"{name} {value:.3f}\n{length:.1f} {unit} a chain", name == start
            axis.annotate(text, points[-1], (0, -13) if side else (-8, 8), textcoords="offset points", fontsize=8, color=colour,
                          ha="center" if side else "right", va="top" if side else "bottom")  # fmt: skip
        axis.annotate("", points[1], points[0], arrowprops={"arrowstyle": "->", "color": colour, "shrinkA": 6, "shrinkB": 6})
    axis.set(xlabel="FLOP of training so far, times 1e12", ylabel="right answers, noise-free", xlim=(0, 12), ylim=(0.1, 1.1))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    draw(table()).savefig(HERE / "demo.svg", metadata={"Date": None, "Creator": None})
