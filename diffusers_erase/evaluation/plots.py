"""Figures, by matplotlib if it is installed."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers_erase.errors import ErasureError, shown
from diffusers_erase.evaluation.extras import optional
from diffusers_erase.evaluation.graph import Graph
from diffusers_erase.evaluation.summary import Summary


def heat_map(graph: Graph, path: Path, *, title: str = "") -> None:
    """Plot the damage of each erasure (rows) to each concept (columns).

    Red cells are drawn less often than by the base model; a dot marks a certain change.
    """
    names, rows = graph.concepts, [w for w in graph.concepts if w in graph.erased]
    with _figure(path, 0.22 * len(names) + 2.5, 0.22 * len(rows) + 2.2) as (figure, axes):
        changes = [[-graph.damage(e, w) for w in names] for e in rows]
        picture = axes.imshow(changes, cmap="RdBu", vmin=-1, vmax=1)
        for i, erased in enumerate(rows):
            for j, word in enumerate(names):
                if erased != word and graph.certain(erased, word):
                    axes.plot(j, i, "k.", markersize=2)
        axes.set_xticks(range(len(names)), map(_label, names), rotation=90, fontsize=7)
        axes.set_yticks(range(len(rows)), map(_label, rows), fontsize=7)
        edge = -0.5
        for members in graph.families.values():
            edge += len(members)
            axes.axvline(edge, color="grey", linewidth=0.4)
            axes.axhline(edge, color="grey", linewidth=0.4)
        axes.set_ylabel("erased")
        axes.set_title(title or "change of how often each concept is drawn", fontsize=9)
        figure.colorbar(picture, shrink=0.6)


def wheel(graph: Graph, path: Path, *, title: str = "") -> None:
    """Plot the concepts on a circle, with an arrow for each certain damage.

    Arrows lead from the erased concept to the harmed one; families have colours.
    """
    names = graph.concepts
    angles = {name: 2 * math.pi * k / len(names) for k, name in enumerate(names)}
    place = {name: (math.cos(angle), math.sin(angle)) for name, angle in angles.items()}
    with _figure(path, 8, 8) as (_, axes):
        for k, members in enumerate(graph.families.values()):
            for name in members:
                x, y = place[name]
                faint = name in graph.abnormal
                axes.plot(x, y, "o", color=f"C{k % 10}", alpha=0.3 if faint else 1)
                angle = math.degrees(math.atan2(y, x))
                left = abs(angle) > 90
                axes.text(
                    1.05 * x,
                    1.05 * y,
                    _label(name),
                    rotation=angle + 180 if left else angle,
                    ha="right" if left else "left",
                    va="center",
                    rotation_mode="anchor",
                    fontsize=8,
                )
        for erased, word in graph.pairs():
            damage = graph.damage(erased, word)
            if damage > 0 and graph.certain(erased, word):
                arrow = {"arrowstyle": "->", "linewidth": 2 * damage, "color": "firebrick"}
                axes.annotate("", place[word], place[erased], arrowprops=arrow)
        axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
        axes.set_aspect("equal")
        axes.axis("off")
        axes.set_title(title or "certain harm", fontsize=9)


def bars(summary: Summary, path: Path) -> None:
    """Plot the rates of base and erased model of every group, with 95 % intervals."""
    rows = summary.rows[::-1]
    with _figure(path, 6, 0.4 * len(rows) + 1) as (_, axes):
        for k, (side, colour) in enumerate((("erased", "firebrick"), ("base", "lightsteelblue"))):
            rates = [getattr(row, side) for row in rows]
            values = [100 * rate.value for rate in rates]
            spread = [[100 * abs(rate.interval[i] - rate.value) for rate in rates] for i in (0, 1)]
            places = [i + 0.4 * k - 0.2 for i in range(len(rows))]
            axes.barh(places, values, 0.4, xerr=spread, color=colour, label=side, ecolor="grey")
        axes.set_yticks(range(len(rows)), [_label(row.name) for row in rows])
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of pictures that show a wanted label")
        axes.legend(loc="lower right", fontsize=8)


def can_plot() -> bool:
    """True if matplotlib can be imported."""
    try:
        optional("matplotlib", "plots")
    except ErasureError:
        return False
    return True


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, saved as PNG after the block; text is drawn as it is, not as math."""
    settings = {"text.parse_math": False}
    with optional("matplotlib", "plots").rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # letters that the font lacks
        figure = optional("matplotlib.figure", "plots").Figure((width, height))
        yield figure, figure.subplots()
        figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})


def _label(name: str) -> str:
    """The name as the label of an axis."""
    return shown(name, 40)
