import pytest

from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.continual import continual
from diffusers_erase.evaluation.graph import ConceptSet, Graph, concept_graph
from diffusers_erase.evaluation.graph_report import read_graph, write_graph
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.making.api import erase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.model import Model
from diffusers_erase.playground.protocols import graph_protocol, likeness


FAMILIES = {"vehicle": ("car", "truck"), "animal": ("cat", "dog"), "tree": ("oak", "pine")}
LIKE = {
    a: {b: 1.0 if a == b else 0.8 if fa == fb else 0.1 + 0.01 * abs(i - j)
        for j, (fb, ws) in enumerate(FAMILIES.items()) for b in ws}
    for i, (fa, words) in enumerate(FAMILIES.items()) for a in words
}  # fmt: skip


def made_up(damage, n=100, base=1.0):
    """A graph in which erasing i harms j by damage(i, j)."""
    words = [w for ws in FAMILIES.values() for w in ws]
    hits = {w: round((base(w) if callable(base) else base) * n) for w in words}
    return Graph(
        FAMILIES,
        {w: Rate(hits[w], n) for w in words},
        {
            e: {w: Rate(0 if e == w else round(hits[w] - damage(e, w) * n), n) for w in words}
            for e in words
        },
    )


def family(word):
    return next(name for name, words in FAMILIES.items() if word in words)


def test_harm_to_the_like_is_local_and_harm_to_all_is_not():
    local = made_up(lambda e, w: LIKE[e][w] / 2, n=10_000)
    assert local.locality(LIKE) == pytest.approx(1)
    assert local.mean_damage(within=True) == pytest.approx(0.4)
    assert local.mean_damage(within=False) < 0.1
    everywhere = made_up(lambda e, w: 0.5)
    assert everywhere.locality(LIKE) is None
    assert everywhere.far_damage(LIKE) == pytest.approx(0.5)
    assert everywhere.density == 1
    nothing = made_up(lambda e, w: 0.0)
    assert (nothing.density, nothing.asymmetry, nothing.hurt_by_all()) == (0, None, {})


def test_harm_one_way_is_told_from_harm_that_is_mutual():
    mutual = made_up(lambda e, w: 0.4 if family(e) == family(w) else 0)
    one_way = made_up(lambda e, w: 0.4 if family(e) == family(w) and e < w else 0)
    assert mutual.asymmetry == 0
    assert one_way.asymmetry == 1
    strong = made_up(lambda e, w: 0.9 if (e, w) == ("car", "truck") else 0)
    assert strong.one_way() == [("car", "truck")]
    assert strong.by_family() == {"vehicle": pytest.approx(0.45), "animal": 0, "tree": 0}


def test_what_the_base_draws_badly_is_set_apart():
    graph = made_up(lambda e, w: 0.3, base=lambda w: 0.6 if w == "pine" else 1.0)
    assert graph.abnormal == ("pine",)
    assert all("pine" not in pair for pair in graph.pairs())
    hurt = made_up(lambda e, w: 0.3 if w == "dog" else 0.0)
    assert hurt.hurt_by_all() == {"dog": pytest.approx(0.3)}


def test_a_graph_is_written_whole_and_read_again(tmp_path):
    graph = made_up(lambda e, w: LIKE[e][w] / 2)
    folder = write_graph(graph, tmp_path / "graph", likeness=LIKE)
    assert read_graph(folder / "graph.json") == graph
    assert len((folder / "graph.csv").read_text().splitlines()) == 1 + 36
    assert "| car | truck | 100 % | 60.0 %" in (folder / "table.md").read_text()
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "://" not in page
    with pytest.raises(ErasureError, match="no concept graph"):
        read_graph(folder / "graph.csv")


@pytest.mark.parametrize(
    ("families", "complaint"),
    [
        ({"a": ["x"]}, "two concepts or more"),
        ({"a": ["x", "y"], "b": ["x"]}, "'x' is there twice"),
        ({"a": "xyz"}, "a list of its concepts"),
        (None, "mapping with `families`"),
    ],
)
def test_a_field_needs_concepts(families, complaint):
    with pytest.raises(ErasureError, match=complaint):
        ConceptSet.of({"families": families})


def test_a_field_is_read_from_a_file(tmp_path):
    path = tmp_path / "graph.yaml"
    path.write_text("families:\n  one: [orange, car]\ntemplate: a {}\npictures: 2\n")
    asked = ConceptSet.read(path).cases()
    assert [a.prompt for a in asked] == ["an orange", "an orange", "a car", "a car"]
    assert len({a.seed for a in asked}) == 4
    path.write_text("families: [\n")
    with pytest.raises(ErasureError, match="line 2"):
        ConceptSet.read(path)


@pytest.fixture
def runner(playground, judge, tmp_path):
    sampler = PipelineSampler(playground, judge, Sampling(steps=5, batch=16))
    return Runner(sampler, tmp_path / "work", progress=False)


SMALL = ConceptSet({"vehicle": ("car", "bus"), "tree": ("oak",)}, ("a photo of a red {}",), 4)
WORDS = ("fish", "oak", "star", "bus", "car")


def test_erasing_each_concept_hits_it_and_a_second_run_draws_nothing(runner):
    made = []

    def make(concept):
        made.append(concept.name)
        words = [w for w in WORDS if w != concept.name]
        return erase(runner.sampler.pipe, concept, recipe="closed-form", vocabulary=words)

    graph = concept_graph(runner, SMALL, make)
    assert made == ["car", "bus", "oak"]
    for word in made:
        assert graph.base[word].value >= 0.5
        assert graph.erased[word][word].value <= 0.25
    assert graph.erased["oak"]["car"].value >= 0.5
    assert runner.sampler.pipe.list_erasures() == {}
    with counted(Model.of(runner.sampler.pipe).denoiser) as spent:
        assert concept_graph(runner, SMALL, make) == graph
    assert (spent(), len(made)) == (0, 3)


def test_an_eraser_that_was_made_in_another_way_is_not_taken_for_this_one(runner):
    made = []

    def make(concept):
        made.append(concept.name)
        return erase(runner.sampler.pipe, concept, recipe="uce", target="fish", vocabulary=WORDS)

    one = [Concept("car")]
    for way in ("uce", "uce", "uce, other words"):
        concept_graph(runner, SMALL, make, concepts=one, way=way)
    assert made == ["car", "car"]


def test_erasers_add_up_over_time(runner):
    erasers = {
        word: erase(
            runner.sampler.pipe,
            Concept(word),
            recipe="closed-form",
            target=target,
            vocabulary=[w for w in WORDS if w != word],
        )
        for word, target in (("car", "fish"), ("bus", "star"))
    }
    line = continual(runner, SMALL, erasers)
    assert list(line.after) == ["car", "bus"]
    assert line.erased_by("bus") == ["car", "bus"]
    assert line.unlearned("car").n == 4
    assert line.unlearned("bus").n == 8
    assert line.unlearned("bus").value >= 0.75
    assert line.kept("bus").value >= 0.75
    assert line.plain()[1]["kept"]["value"] == line.kept("bus").value
    assert runner.sampler.pipe.list_erasures() == {}


def test_only_the_bare_base_is_erased_from(runner, make_eraser):
    pipe = runner.sampler.pipe
    pipe.load_erasure(make_eraser(pipe.unet), "car")
    with pytest.raises(ErasureError, match="unload_erasures"):
        concept_graph(runner, SMALL, lambda concept: None)
    with pytest.raises(ErasureError, match="unload_erasures"):
        continual(runner, SMALL, {})
    pipe.unload_erasures()
    with pytest.raises(ErasureError, match="no concept 'unicorn'"):
        concept_graph(runner, SMALL, lambda concept: None, concepts=[Concept("unicorn")])


def test_the_playground_is_a_field():
    field = ConceptSet.of(graph_protocol())
    assert set(field.concepts) == set(likeness())
