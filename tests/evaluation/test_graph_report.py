import json

import pytest

from diffusers_erase.evaluation.graph import Graph
from diffusers_erase.evaluation.graph_report import write_graph
from diffusers_erase.evaluation.metrics import Rate


FAMILIES = {"vehicle": ("car", "truck"), "tree": ("oak", "<b>pine</b>")}
NAMES = [name for names in FAMILIES.values() for name in names]
LIKENESS = {a: {b: 1.0 if a == b else 0.1 for b in NAMES} for a in NAMES}


@pytest.fixture
def graph():
    """Erasing the car harms the truck."""
    erased = {e: {w: Rate(0 if e == w else 100, 100) for w in NAMES} for e in NAMES}
    erased["car"]["truck"] = Rate(60, 100)
    return Graph(FAMILIES, {name: Rate(100, 100) for name in NAMES}, erased)


def test_write_graph_writes_numbers_tables_figures_and_page(graph, tmp_path):
    folder = write_graph(graph, tmp_path / "graph", likeness=LIKENESS)
    numbers = json.loads((folder / "graph.json").read_text())
    assert numbers["erased"]["car"]["truck"] == [60, 100]
    assert numbers["families"]["vehicle"] == ["car", "truck"]
    assert len((folder / "graph.csv").read_text().splitlines()) == 1 + 16
    table = (folder / "table.md").read_text()
    assert "| car | truck | 100 % | 60.0 %" in table
    assert "| harm within families | 0.100 |" in table
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "://" not in page
    assert "<b>" not in page
