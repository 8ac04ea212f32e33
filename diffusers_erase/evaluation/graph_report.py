"""The report of a concept graph: numbers, edges, figures."""

import json
from collections.abc import Mapping
from pathlib import Path

from diffusers_erase.evaluation.graph import Graph, Likeness
from diffusers_erase.evaluation.page import page, table
from diffusers_erase.evaluation.plots import can_plot, heat_map, wheel
from diffusers_erase.storage.atomic import whole_folder


RESULTS, TABLE, SUMMARY, PAGE = "graph.json", "graph.csv", "table.md", "index.html"
FIGURES = {"heat_map.png": heat_map, "wheel.png": wheel}
KNOWN = (TABLE, SUMMARY, PAGE, *FIGURES)
"""Names in the folder, besides `graph.json`, by which it is recognised."""


def write_graph(graph: Graph, folder: Path, *, likeness: Likeness | None = None) -> Path:
    """Write `graph.json`, `graph.csv`, `table.md`, figures and `index.html`, all or nothing."""
    with whole_folder(folder) as draft:
        (draft / RESULTS).write_text(json.dumps(graph.to_dict(likeness)) + "\n", "utf-8")
        (draft / TABLE).write_text(graph.csv(), "utf-8")
        text = graph_markdown(graph, likeness)
        (draft / SUMMARY).write_text(text, "utf-8")
        figures = FIGURES if can_plot() else {}
        for name, plot in figures.items():
            plot(graph, draft / name)
        pictures = [(name, draft / name) for name in figures]
        (draft / PAGE).write_text(page("Concept graph", text, pictures), "utf-8")
    return folder


def graph_markdown(graph: Graph, likeness: Likeness | None = None) -> str:
    """The means of the graph, and every certain damage, the largest first."""
    content = graph.to_dict(likeness)
    means = {
        "erased concept is still drawn": content["efficacy"],
        "harm within families": content["within_families"],
        "harm between families": content["between_families"],
        "pairs with certain harm": content["density"],
        "asymmetry (0 mutual, 1 one way)": content["asymmetry"],
        "locality (rank correlation of likeness and harm)": content.get("locality"),
        "harm among the third that is least alike": content.get("far_damage"),
    }
    lists = {
        "drawn badly by the base, left out": ", ".join(graph.abnormal),
        "harmed whatever is erased": _listed(graph.hurt_by_all()),
        "harm within each family": _listed(graph.by_family()),
        "one way: 75 % or more there, 12.5 % or less back": ", ".join(
            f"{erased} to {word}" for erased, word in graph.one_way()
        ),
    }
    edges = [(graph.damage(*pair), pair) for pair in graph.pairs() if graph.certain(*pair)]
    edges = sorted((edge for edge in edges if edge[0] > 0), key=lambda edge: -edge[0])
    return "\n".join(
        (
            table(
                ("", ":"),
                [
                    *((k, "not measured" if v is None else f"{v:.3f}") for k, v in means.items()),
                    *((name, listed or "none") for name, listed in lists.items()),
                ],
            ),
            table(
                ("erased", "harmed", "base:", "after:"),
                (
                    (e, w, f"{100 * graph.base[w].value:.0f} %", graph.erased[e][w])
                    for _, (e, w) in edges
                ),
            ),
        )
    )


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
