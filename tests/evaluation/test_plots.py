import pytest
from PIL import Image

from diffusers_erase.evaluation.graph import Graph
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.plots import bars, can_plot, heat_map, wheel
from diffusers_erase.evaluation.summary import GroupResult, Summary


NAMES = ("a $b", "c $\\notacommand$", "line\nbreak\x07", "x" * 500, "車")


@pytest.fixture
def graph():
    """Names that break formulas and fonts, with certain damage of the first to the second."""
    hits = dict.fromkeys(NAMES, 100)
    erased = {e: {w: Rate(0 if e == w else hits[w], 100) for w in NAMES} for e in NAMES}
    erased[NAMES[0]][NAMES[1]] = Rate(20, 100)
    families = {"one": NAMES[:2], "two": NAMES[2:]}
    return Graph(families, {name: Rate(100, 100) for name in NAMES}, erased)


@pytest.mark.parametrize("plot", [heat_map, wheel])
def test_graph_plots_draw_any_name_as_text(graph, plot, tmp_path):
    plot(graph, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width < 2000
        assert len(picture.getcolors(1 << 20)) > 10


def test_bars_draw_any_name_as_text(tmp_path):
    rows = [
        GroupResult(name, "target", Rate(9, 10), Rate(1, 10), (-1, 0), Rate(0, 10))
        for name in NAMES
    ]
    bars(Summary(tuple(rows)), tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.width < 2000
        assert len(picture.getcolors(1 << 20)) > 10


def test_plots_do_not_depend_on_settings_of_the_user(graph, tmp_path):
    import matplotlib as mpl

    with mpl.rc_context({"text.usetex": False, "text.parse_math": True}):
        heat_map(graph, tmp_path / "one.png")
        assert mpl.rcParams["text.parse_math"]
    heat_map(graph, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_can_plot_says_whether_matplotlib_is_installed(monkeypatch):
    import sys

    assert can_plot()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not can_plot()
