"""A concept graph, for people: numbers, edges, figures."""

import json
from collections.abc import Mapping
from pathlib import Path

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.graph import Graph
from diffusers_erase.evaluation.page import as_html, figure, page
from diffusers_erase.evaluation.plots import drawable, heat_map, wheel
from diffusers_erase.storage.atomic import whole_folder


RESULTS, TABLE, SUMMARY, PAGE = "graph.json", "graph.csv", "table.md", "index.html"
FIGURES = ("heat_map.png", "wheel.png")
KNOWN = (TABLE, SUMMARY, PAGE, *FIGURES)
"""Names in the folder, beside `graph.json` by which it is known."""

NOT_MEASURED = "not measured"

Likeness = Mapping[str, Mapping[str, float]]


def write_graph(graph: Graph, folder: Path, *, likeness: Likeness | None = None) -> Path:
    """`graph.json`, `graph.csv`, `table.md`, figures and `index.html`, all or nothing."""
    with whole_folder(folder) as draft:
        plain = graph.plain(likeness)
        (draft / RESULTS).write_text(json.dumps(plain) + "\n", "utf-8")
        (draft / TABLE).write_text(graph.csv(), "utf-8")
        table = graph_markdown(graph, likeness)
        (draft / SUMMARY).write_text(table, "utf-8")
        figures = FIGURES if drawable() else ()
        for name, draw in zip(figures, (heat_map, wheel), strict=False):
            draw(graph, draft / name)
        body = as_html(table) + "".join(figure(draft / name, name) for name in figures)
        (draft / PAGE).write_text(page("Concept graph", body), "utf-8")
    return folder


def graph_markdown(graph: Graph, likeness: Likeness | None = None) -> str:
    """What the graph says in numbers, and every certain harm, the largest first."""
    plain = graph.plain(likeness)
    said = {
        "erased concept is still drawn": plain["efficacy"],
        "harm within families": plain["within_families"],
        "harm between families": plain["between_families"],
        "pairs with certain harm": plain["density"],
        "asymmetry (0 mutual, 1 one way)": plain["asymmetry"],
        "locality (rank correlation of likeness and harm)": plain.get("locality"),
        "harm among the third that is least alike": plain.get("far_damage"),
    }
    lines = ["| | |", "| --- | ---: |"]
    lines += [
        f"| {name} | {NOT_MEASURED if value is None else f'{value:.3f}'} |"
        for name, value in said.items()
    ]
    apart = ", ".join(graph.abnormal) or "none"
    lines += [f"| drawn badly by the base, left out | {apart} |"]
    hurt = _listed(graph.hurt_by_all())
    lines += [f"| hurt whatever is erased | {hurt} |"]
    lines += [f"| harm within each family | {_listed(graph.by_family())} |"]
    one_way = ", ".join(f"{e} to {w}" for e, w in graph.one_way()) or "none"
    lines += [f"| one way: three quarters there, an eighth back at most | {one_way} |", ""]
    edges = sorted(graph.pairs(), key=lambda pair: -graph.damage(*pair))
    edges = [pair for pair in edges if graph.damage(*pair) > 0 and graph.certain(*pair)]
    lines += ["| erased | harmed | base | after |", "| --- | --- | ---: | ---: |"]
    lines += [
        f"| {e} | {w} | {100 * graph.base[w].value:.0f} % | {graph.erased[e][w]} |"
        for e, w in edges
    ]
    return "\n".join(lines) + "\n"


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items()) or "none"


def read_graph(path: str | Path) -> Graph:
    """From a `graph.json`.

    Raises:
        ErasureError: it is none.
    """
    try:
        return Graph.of(json.loads(Path(path).read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ErasureError(f"'{path}' holds no concept graph: {error}.") from error
