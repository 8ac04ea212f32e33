import csv
import io
import json
from dataclasses import replace

import pytest

from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.continual import continual
from diffusers_erase.evaluation.graph import ConceptSet, Graph, concept_graph
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


def test_graph_locality_is_1_for_damage_by_likeness_and_none_for_equal_damage():
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


def test_graph_asymmetry_is_0_for_mutual_and_1_for_one_way_damage():
    mutual = made_up(lambda e, w: 0.4 if family(e) == family(w) else 0)
    one_way = made_up(lambda e, w: 0.4 if family(e) == family(w) and e < w else 0)
    assert mutual.asymmetry == 0
    assert one_way.asymmetry == 1
    strong = made_up(lambda e, w: 0.9 if (e, w) == ("car", "truck") else 0)
    assert strong.one_way() == [("car", "truck")]
    assert strong.by_family() == {"vehicle": pytest.approx(0.45), "animal": 0, "tree": 0}


def test_graph_leaves_out_concepts_that_the_base_draws_badly():
    graph = made_up(lambda e, w: 0.3, base=lambda w: 0.6 if w == "pine" else 1.0)
    assert graph.abnormal == ("pine",)
    assert all("pine" not in pair for pair in graph.pairs())
    hurt = made_up(lambda e, w: 0.3 if w == "dog" else 0.0)
    assert hurt.hurt_by_all() == {"dog": pytest.approx(0.3)}


def test_graph_to_dict_is_plain_json():
    graph = made_up(lambda e, w: LIKE[e][w] / 2)
    content = graph.to_dict(LIKE)
    assert json.loads(json.dumps(content)) == content
    assert content["base"] == {w: [rate.hits, rate.n] for w, rate in graph.base.items()}


def test_graph_csv_quotes_names_with_commas_and_quotes():
    names = ("Paris, Texas", 'a "b"')
    rates = {name: Rate(8, 8) for name in names}
    graph = Graph({"x, y": names}, rates, {names[0]: {**rates, names[0]: Rate(0, 8)}})
    header, *rows = csv.reader(io.StringIO(graph.csv()))
    assert [len(row) for row in rows] == [len(header)] * 2
    assert rows[0] == [names[0], "x, y", names[0], "x, y", "8", "8", "0", "8", "1.0"]
    assert rows[1][2] == names[1]


@pytest.mark.parametrize(
    ("families", "complaint"),
    [
        ({"a": ["x"]}, "two concepts or more"),
        ({"a": ["x", "y"], "b": ["x"]}, "'x' is named twice"),
        ({"a": 3}, "families > a.*a list of texts"),
        ({"a": ["x", 3]}, "families > a > 1.*a text is needed"),
        (None, "keys and values are needed"),
    ],
)
def test_concept_set_refuses_missing_or_repeated_concepts(families, complaint):
    with pytest.raises(ErasureError, match=complaint):
        ConceptSet.of({"families": families})


@pytest.mark.parametrize(
    "change", [{"template": 3}, {"template": [3]}, {"pictures": "many"}, {"pictures": True}]
)
def test_concept_set_refuses_values_of_the_wrong_kind(change):
    with pytest.raises(ErasureError, match=f"the protocol .{next(iter(change))}.* needed here"):
        ConceptSet.of({"families": {"a": ["x", "y"]}, **change})


def test_concept_set_read_gives_prompts_and_seeds(tmp_path):
    path = tmp_path / "graph.yaml"
    path.write_text("families:\n  one: [orange, car]\ntemplate: ['{a}', 'a {}']\npictures: 2\n")
    cases = ConceptSet.read(path).cases()
    assert [case.prompt for case in cases] == ["an orange", "a orange", "a car", "a car"]
    assert len({case.seed for case in cases}) == 4
    path.write_text("families: [\n")
    with pytest.raises(ErasureError, match="line 2"):
        ConceptSet.read(path)


@pytest.fixture
def runner(playground, judge, tmp_path):
    sampler = PipelineSampler(playground, judge, Sampling(steps=5, batch=16))
    return Runner(sampler, tmp_path / "work", progress=False)


SMALL = ConceptSet({"vehicle": ("car", "bus"), "tree": ("oak",)}, ("a photo of a red {}",), 4)
WORDS = ("fish", "oak", "star", "bus", "car")


def test_concept_graph_erases_each_concept_and_draws_nothing_the_second_time(runner):
    made, two_pictures = [], replace(SMALL, pictures=2)

    def make(concept):
        made.append(concept.name)
        words = [w for w in WORDS if w != concept.name]
        return erase(
            runner.sampler.pipe, concept, recipe="closed-form", vocabulary=words, check=False
        )

    graph = concept_graph(runner, two_pictures, make)
    assert made == ["car", "bus", "oak"]
    for word in made:
        assert graph.base[word].value >= 0.5
        assert graph.erased[word][word].value <= 0.25
    assert graph.erased["oak"]["car"].value >= 0.5
    assert runner.sampler.pipe.list_erasures() == {}
    with counted(Model.of(runner.sampler.pipe).denoiser) as spent:
        assert concept_graph(runner, two_pictures, make) == graph
    assert (spent(), len(made)) == (0, 3)


def test_concept_graph_stores_erasers_inside_its_work_folder(runner, tmp_path):
    name = "../../../car"
    pair = ConceptSet({"vehicle": (name, "bus")}, ("a photo of {}",), 1)

    def make(concept):
        return erase(
            runner.sampler.pipe, "car", recipe="uce", target="fish", vocabulary=WORDS, check=False
        )

    concept_graph(runner, pair, make, erase=[Concept(name)])
    (folder,) = (tmp_path / "work" / "erasers").iterdir()
    assert folder.name.startswith("car-")


def test_concept_graph_reuses_erasers_of_the_same_way_only(runner):
    made, one_picture = [], replace(SMALL, pictures=1)

    def make(concept):
        made.append(concept.name)
        return erase(
            runner.sampler.pipe, concept, recipe="uce", target="fish", vocabulary=WORDS, check=False
        )

    car = [Concept("car")]
    for way in ("uce", "uce", "uce, other words"):
        concept_graph(runner, one_picture, make, erase=car, way=way)
    assert made == ["car", "car"]


def test_continual_measures_all_erasers_loaded_so_far(runner):
    erasers = {
        word: erase(
            runner.sampler.pipe,
            Concept(word),
            recipe="closed-form",
            target=target,
            vocabulary=[w for w in WORDS if w != word],
            check=False,
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
    assert line.to_list()[1]["kept"]["value"] == line.kept("bus").value
    assert runner.sampler.pipe.list_erasures() == {}


def test_concept_graph_and_continual_refuse_loaded_erasers_and_foreign_concepts(
    runner, make_eraser
):
    pipe = runner.sampler.pipe
    pipe.load_erasure(make_eraser(pipe.unet), "car")
    with pytest.raises(ErasureError, match="unload_erasures"):
        concept_graph(runner, SMALL, lambda concept: None)
    with pytest.raises(ErasureError, match="unload_erasures"):
        continual(runner, SMALL, {})
    pipe.unload_erasures()
    with pytest.raises(ErasureError, match="no concept 'unicorn'"):
        concept_graph(runner, SMALL, lambda concept: None, erase=[Concept("unicorn")])


def test_playground_graph_protocol_has_all_objects():
    assert set(ConceptSet.of(graph_protocol()).names) == set(likeness())
