"""Figures, by matplotlib where it is installed."""

import math
from pathlib import Path
from typing import Any

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.extras import optional
from diffusers_erase.evaluation.graph import Graph
from diffusers_erase.evaluation.summary import Summary


def heat_map(graph: Graph, path: Path, *, title: str = "") -> None:
    """Rows are erased, columns looked at; red where they are drawn less, dots where it is certain.

    Raises:
        ErasureError: matplotlib is missing.
    """
    plt = _pyplot()
    words, rows = graph.concepts, [w for w in graph.concepts if w in graph.erased]
    changes = [[-graph.damage(e, w) for w in words] for e in rows]
    figure, axes = plt.subplots(figsize=(0.22 * len(words) + 2.5, 0.22 * len(rows) + 2.2))
    picture = axes.imshow(changes, cmap="RdBu", vmin=-1, vmax=1)
    for i, erased in enumerate(rows):
        for j, word in enumerate(words):
            if erased != word and graph.certain(erased, word):
                axes.plot(j, i, "k.", markersize=2)
    axes.set_xticks(range(len(words)), words, rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    edge = -0.5
    for members in graph.families.values():
        edge += len(members)
        axes.axvline(edge, color="grey", linewidth=0.4)
        axes.axhline(edge, color="grey", linewidth=0.4)
    axes.set_ylabel("erased")
    axes.set_title(title or "change of how often each is drawn", fontsize=9)
    figure.colorbar(picture, shrink=0.6)
    _save(figure, path)


def wheel(graph: Graph, path: Path, *, title: str = "") -> None:
    """Concepts on a circle, family by family; an arrow from what is erased to what it harms.

    Raises:
        ErasureError: matplotlib is missing.
    """
    plt = _pyplot()
    words = graph.concepts
    place = {
        word: (math.cos(2 * math.pi * k / len(words)), math.sin(2 * math.pi * k / len(words)))
        for k, word in enumerate(words)
    }
    figure, axes = plt.subplots(figsize=(8, 8))
    colours = plt.get_cmap("tab10")
    for k, members in enumerate(graph.families.values()):
        for word in members:
            x, y = place[word]
            faint = word in graph.abnormal
            axes.plot(x, y, "o", color=colours(k % 10), alpha=0.3 if faint else 1)
            angle = math.degrees(math.atan2(y, x))
            left = abs(angle) > 90
            axes.text(
                1.05 * x,
                1.05 * y,
                word,
                rotation=angle + 180 if left else angle,
                ha="right" if left else "left",
                va="center",
                rotation_mode="anchor",
                fontsize=8,
            )
    for erased, word in graph.pairs():
        damage = graph.damage(erased, word)
        if damage > 0 and graph.certain(erased, word):
            axes.annotate(
                "",
                place[word],
                place[erased],
                arrowprops={"arrowstyle": "->", "linewidth": 2 * damage, "color": "firebrick"},
            )
    axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title or "certain harm", fontsize=9)
    _save(figure, path)


def bars(summary: Summary, path: Path) -> None:
    """Base and erased of every group, with their intervals.

    Raises:
        ErasureError: matplotlib is missing.
    """
    plt = _pyplot()
    rows = summary.rows[::-1]
    figure, axes = plt.subplots(figsize=(6, 0.4 * len(rows) + 1))
    for k, (which, colour) in enumerate((("erased", "firebrick"), ("base", "lightsteelblue"))):
        rates = [getattr(row, which) for row in rows]
        values = [100 * rate.value for rate in rates]
        around = [[100 * abs(rate.interval[end] - rate.value) for rate in rates] for end in (0, 1)]
        places = [i + 0.4 * k - 0.2 for i in range(len(rows))]
        axes.barh(places, values, 0.4, xerr=around, color=colour, label=which, ecolor="grey")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of pictures that show what is asked for")
    axes.legend(loc="lower right", fontsize=8)
    _save(figure, path)


def drawable() -> bool:
    """Whether there is something to draw figures with."""
    try:
        _pyplot()
    except ErasureError:
        return False
    return True


def _pyplot() -> Any:
    """Without a screen."""
    optional("matplotlib", "plots").use("agg", force=False)
    return optional("matplotlib.pyplot", "plots")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    _pyplot().close(figure)
