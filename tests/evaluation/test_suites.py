from itertools import product

import pytest

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.graph import ConceptSet
from diffusers_erase.evaluation.suites import RELATIONS, Suite, shipped_protocols
from diffusers_erase.playground import ARTISTS, OBJECTS
from diffusers_erase.playground.protocols import PROTOCOLS, alike, likeness, protocol


YAML = """\
suite: mine
concept: car
groups:
  target:
    prompts: [a photo of a red car, a blue car]
    show: car
    pictures: 3
  near:
    relation: neighbour
    words: [truck, bus]
    templates: ["a {}", "two {}"]
  beside:
    relation: co-occurring
    prompts:
      a car and a tree: [oak, pine]
  "null":
    prompts: [""]
    show: car
"""


@pytest.fixture
def write(tmp_path):
    def write_suite(text):
        path = tmp_path / "suite.yaml"
        path.write_text(text)
        return path

    return write_suite


def test_suite_read_gives_prompts_seeds_and_wanted_labels(write):
    suite = Suite.read(write(YAML))
    target, near, beside, null = suite.groups
    assert (suite.name, suite.concepts) == ("mine", ("car",))
    assert [a.prompt for a in target.cases(7)] == [
        "a photo of a red car",
        "a blue car",
        "a photo of a red car",
    ]
    assert [a.seed for a in target.cases(7)] == [7, 8, 9]
    assert near.prompts == (
        ("a truck", ("truck",)),
        ("a bus", ("bus",)),
        ("two truck", ("truck",)),
        ("two bus", ("bus",)),
    )
    assert beside.prompts == (("a car and a tree", ("oak", "pine")),)
    assert null.prompts == (("", ("car",)),)
    assert [g.relation for g in suite.groups] == ["target", "neighbour", "co-occurring", "null"]


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("concept: car\n", "", "line 1: `concept` is missing"),
        ("relation: neighbour", "relation: neighbor", "line 9 .*Did you mean 'neighbour'"),
        ("pictures: 3", "pictures: 0", "line 7 .*1 or more is needed here; got 0"),
        ("pictures: 3", "picture: 3", "line 7 .*Did you mean 'pictures'"),
        ('"a {}"', '"a"', "line 11 .*needs one '{}'"),
        ("[truck, bus]", "[]", "line 10 .*got \\[\\]"),
        ("prompts: [a photo of a red car, a blue car]", "prompts: []", "line 5"),
        ("    show: car\n    pictures", "    pictures", "line 4 .*got None"),
        ("concept: car", "concept: [car", "line 3"),
        ("[a photo of a red car, a blue car]", "[1, 2]", "line 5 .*a text is needed here; got 1"),
        ("relation: neighbour", "relation: [neighbour]", "line 9 .*No relation named"),
    ],
)
def test_suite_read_names_the_line_of_an_error(write, before, after, complaint):
    assert before in YAML
    with pytest.raises(ErasureError, match=complaint):
        Suite.read(write(YAML.replace(before, after, 1)))


def test_suite_read_refuses_a_missing_file_and_one_without_a_mapping(write, tmp_path):
    with pytest.raises(ErasureError, match="Cannot read"):
        Suite.read(tmp_path / "none.yaml")
    for text in ("", "just words", "- a\n- b"):
        with pytest.raises(ErasureError, match="keys and values are needed"):
            Suite.read(write(text))


def test_suite_read_makes_no_python_objects(write):
    with pytest.raises(ErasureError, match="could not determine a constructor"):
        Suite.read(write("concept: !!python/object/apply:os.getcwd []\ngroups: {}"))


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        *product(PROTOCOLS, OBJECTS),
        *product([n for n in PROTOCOLS if n != "objects"], ARTISTS.values()),
    ],
)
def test_playground_protocols_make_a_suite_for_every_object_and_painter(name, concept):
    suite = Suite.of(protocol(name, concept, pictures=8))
    assert suite.groups[0].relation == "target"
    for group in suite.groups:
        relation = RELATIONS[group.relation]
        named = [concept in wanted for _, wanted in group.prompts]
        if relation.expected == "gone":
            assert all(named), group.name
        elif relation.expected == "kept":
            assert not any(named), group.name


def test_playground_protocol_refuses_unknown_names():
    with pytest.raises(ValueError, match="Known: card, ripple, objects"):
        protocol("cards", "car")
    with pytest.raises(ValueError, match="no object or painter 'unicorn'"):
        protocol("card", "unicorn")


def test_playground_likeness_is_symmetric_and_largest_with_oneself():
    near = likeness()
    for name in OBJECTS:
        assert near[name][name] == 1
        assert all(0 <= near[name][w] < 1 for w in OBJECTS if w != name)
        assert all(near[name][w] == pytest.approx(near[w][name]) for w in OBJECTS)
    assert alike("car").index("van") < alike("car").index("cactus")


def test_shipped_protocols_are_those_of_the_literature():
    found = shipped_protocols()
    assert len(ConceptSet.read(found.pop("netfive")).names) == 25
    suites = [Suite.read(path) for path in found.values()]
    assert [s.name for s in suites] == list(found)
    erased = [set(s.concepts) for s in suites]
    assert all(len(names) == 5 for names in erased)
    assert len(set.union(*erased)) == 10
    for suite, names in zip(suites, erased, strict=True):
        target, kept = ({w for _, ws in g.prompts for w in ws} for g in suite.groups)
        assert (target, len(kept), target & kept) == (names, 5, set())
        assert [g.pictures for g in suite.groups] == [2500, 2500]
