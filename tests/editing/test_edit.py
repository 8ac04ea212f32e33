import json
from dataclasses import replace

import pytest

from diffusers_erase.concepts import Concept, Vocabulary, kind_of
from diffusers_erase.concepts.candidates import SYNONYM, is_thing
from diffusers_erase.editing import choosing, shortlist
from diffusers_erase.editing import edit as edit_module
from diffusers_erase.editing.choosing import distances, specific
from diffusers_erase.editing.edit import edit
from diffusers_erase.editing.recipes import CLOSED_FORM, EDITS, UCE, Edit
from diffusers_erase.editing.solvers import Regenerate
from diffusers_erase.editing.texts import texts_of
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import TEXT_PARTS, projections
from diffusers_erase.playground.world import FAMILIES, OBJECTS, SYNONYMS


CAR = Concept("car", synonyms=("automobile",))
WORDS = Vocabulary(("van", "truck", "oak", "castle", "cat", "daisy"))


@pytest.fixture(scope="module")
def texts(shipped):
    """They remember the states of all prompts of these tests."""
    return texts_of(shipped)


def weights(pipe):
    return {p: layer.weight for p, layer in projections(pipe.unet, TEXT_PARTS).items()}


def gap(texts, T, prompt, answer):
    """Share of the way from the prompt to its answer that is left, at their last words."""
    last = len(texts.tokenizer(prompt).input_ids) - 2
    e, v = texts.encode([prompt, answer])[:, last].double()
    return ((T(e) - v).norm() / (e - v).norm()).item()


@pytest.mark.parametrize("name", ["closed-form", "uce", "rece", "realera"])
def test_edit_maps_the_concept_to_its_target_in_unlisted_prompts(texts, playground, name):
    found = edit(
        texts, [CAR], EDITS[name], targets=["van"], vocabulary=WORDS, weights=weights(playground)
    )
    for name in CAR.names:
        last = gap(texts, found.map, f"a picture of a yellow {name}", "a picture of a yellow van")
        assert last < 0.55
    same = texts.encode(["", "a photo of an oak"]).double()
    assert (found.map(same) - same)[0].norm() < 1e-5 * same[0].norm()
    assert (found.map(same) - same)[1].norm() < 0.1 * same[1].norm()


def test_edit_keeps_listed_neighbours_and_loses_unlisted_ones(texts):
    far = Vocabulary(("oak", "castle", "cat", "daisy"))

    def moved(words):
        found = edit(texts, [CAR], replace(UCE, near=0), targets=["van"], vocabulary=words)
        e = texts.encode(["a photo of a truck", "a photo of an oak"]).double()
        null = texts.encode([""]).double()
        return ((found.map(e) - e).norm(dim=(1, 2)) / (e - null).norm(dim=(1, 2))).tolist()

    (truck_lost, oak_lost), (truck_kept, _) = moved(far), moved(WORDS)
    assert truck_lost > 3 * truck_kept
    assert truck_lost > 3 * oak_lost


def test_least_damage_is_the_target_that_damages_its_rivals_least(texts):
    (choice,) = edit(texts, [CAR], CLOSED_FORM, vocabulary=WORDS).choices
    assert choice.choice == "least-damage"
    assert choice.target == min(choice.scores, key=choice.scores.__getitem__)
    assert set(choice.scores) <= set(WORDS.words)

    def hurt(target):
        T = edit(texts, [CAR], CLOSED_FORM, targets=[target], vocabulary=WORDS).map
        null = texts.encode([""]).double()
        moved = []
        for rival in set(choice.scores) - {target}:
            e = texts.encode([f"a photo of a {rival}"]).double()
            moved.append(((T(e) - e).square().sum() / (e - null).square().sum()).item())
        return sum(moved) / len(moved)

    everyone = [hurt(word) for word in choice.scores]
    assert hurt(choice.target) <= 1.2 * min(everyone)
    assert hurt(choice.target) < 0.7 * max(everyone)


def test_distances_are_those_from_the_nearest_name(texts):
    words = ("automobile", "sedan", "van", "oak")
    (car,), (wide,) = (
        distances(texts, [concept], [words])
        for concept in (Concept("car"), Concept("car", synonyms=("van",)))
    )
    assert list(car) == sorted(car, key=car.__getitem__)
    assert max(car["automobile"], car["sedan"]) < SYNONYM < min(car["van"], car["oak"])
    assert wide["van"] < 1e-9
    assert wide["automobile"] == pytest.approx(car["automobile"])


def test_edit_without_a_candidate_leaves_the_concept_out_and_says_so(texts):
    for words in (("automobile", "sedan"), ("cars", "old car"), ("red", "painting", "beach")):
        (choice,) = edit(texts, [Concept("car")], CLOSED_FORM, vocabulary=Vocabulary(words)).choices
        assert (choice.target, choice.choice) == (None, "no candidate")


@pytest.mark.parametrize(
    ("first", "second"), [("cat", "dog"), ("car", "truck"), ("oval", "circle")]
)
@pytest.mark.parametrize("listed", [True, False])
def test_no_target_means_another_concept_of_the_call(texts, first, second, listed):
    words = Vocabulary((*OBJECTS, *(word for row in SYNONYMS.values() for word in row)))
    concepts = [Concept(first), Concept(second)]
    choices = edit(texts, concepts, CLOSED_FORM, vocabulary=words if listed else None).choices
    meant = {first, second, *SYNONYMS[first], *SYNONYMS[second]}
    for choice in choices:
        assert choice.target is not None
        assert not meant & {choice.target, *choice.scores}


@pytest.mark.parametrize(
    ("concept", "kind"),
    [("red", "attribute"), ("beach", "place"), ("van", "object"), ("arrow", "object")],
)
def test_targets_are_of_the_kind_of_the_concept(texts, concept, kind):
    (choice,) = edit(texts, [Concept(concept)], CLOSED_FORM).choices
    assert choice.kind == kind
    assert choice.target is not None
    assert {kind_of(word) for word in choice.scores} == {kind}
    assert kind == "place" or all(is_thing(word) for word in choice.scores)


def test_a_style_is_left_out_whatever_the_vocabulary_lists(texts):
    styles = Vocabulary(("lumina", "gessari", "seuratti"))
    for words in (styles, None):
        (choice,) = edit(
            texts, [Concept("van gyre", "style")], CLOSED_FORM, vocabulary=words
        ).choices
        assert (choice.target, choice.choice) == (None, "left out")


def test_a_compound_is_replaced_by_another_head_and_its_parts_are_kept(texts):
    found = edit(texts, [Concept("red car")], CLOSED_FORM)
    (choice,) = found.choices
    assert choice.target.startswith("red ")
    assert not {"red automobile", "red sedan", "red vehicle"} & set(choice.scores)
    prompts = ["a photo of a red car", "a photo of a blue car", "a photo of a car"]
    e = texts.encode([*prompts, "a photo of a red bus"]).double()
    moved = (found.map(e) - e).norm(dim=(1, 2))
    assert (moved[1:] < 0.6 * moved[0]).all()


def test_the_order_of_concepts_of_several_kinds_makes_no_difference(texts):
    both = [Concept("car"), Concept("red"), Concept("van gyre", "style")]
    one, other = (edit(texts, order, CLOSED_FORM) for order in (both, both[::-1]))
    targets = [choice.target for choice in one.choices]
    assert targets == [choice.target for choice in other.choices[::-1]]
    assert targets[2] is None
    assert [choice.kind for choice in one.choices] == ["object", "attribute", "style"]
    change = one.map.change
    assert (change - other.map.change).norm() < 1e-6 * change.norm()


def test_every_synonym_is_erased_and_no_target_is_one_of_them(texts):
    names = FAMILIES["vehicle"]
    vehicle = Concept("vehicle", synonyms=names)
    found = edit(texts, [vehicle], CLOSED_FORM, vocabulary=Vocabulary(OBJECTS))
    target = found.choices[0].target
    assert target not in names
    for name in names:
        assert gap(texts, found.map, f"a photo of a {name}", f"a photo of a {target}") < 0.6


def test_edit_keeps_a_word_that_contains_the_concept_but_takes_it_for_no_target(texts):
    words = Vocabulary(("fire truck", "car", "van", "oak"))
    found = edit(texts, [Concept("truck")], CLOSED_FORM, vocabulary=words)
    assert "fire truck" not in found.choices[0].scores
    e = texts.encode(["a photo of a fire truck", "a photo of a truck"]).double()
    moved = (found.map(e) - e).norm(dim=(1, 2)) / e.norm(dim=(1, 2))
    assert moved[0] < 0.5 * moved[1]


def test_edit_without_a_vocabulary_uses_the_tokenizers_words(texts):
    found = edit(texts, [CAR], CLOSED_FORM)
    assert found.choices[0].target not in (None, "car", "automobile")
    e = texts.encode(["a photo of a red castle", "a photo of a red car"]).double()
    moved = (found.map(e) - e).norm(dim=(1, 2)) / e.norm(dim=(1, 2))
    assert moved[0] < 0.3 * moved[1]


def test_specific_leaves_out_general_words(texts):
    words = ["vehicle", "animal", "shape", "bus", "castle", "car"]
    for concept in map(Concept, ("truck", "van")):
        assert specific(texts, concept, words, OBJECTS) == ["bus", "castle", "car"]
        assert specific(texts, concept, words[:3], OBJECTS) == []


def test_general_keeps_unlisted_words_and_styles(texts):
    far = Vocabulary(("oak", "castle", "circle", "cat"))
    e = texts.encode(["a photo of a red bus", "a painting of a house by van gyre"]).double()
    moved = {}
    for general in (True, False):
        recipe = replace(CLOSED_FORM, general=general)
        found = edit(texts, [Concept("truck")], recipe, targets=["castle"], vocabulary=far)
        moved[general] = (found.map(e) - e).norm(dim=(1, 2))
    assert (moved[True] < 0.3 * moved[False]).all()


def test_edit_leaves_protected_prompts_unchanged(texts):
    found = edit(texts, [CAR], CLOSED_FORM, vocabulary=WORDS, protect=["a red van"])
    e = texts.encode(["a red van"]).double()
    assert (found.map(e) - e).norm() < 1e-5 * e.norm()


def test_edit_maps_each_of_two_concepts_to_its_own_target(texts):
    both = edit(texts, [CAR, Concept("cat")], CLOSED_FORM, targets=["van", "dog"], vocabulary=WORDS)
    assert [c.target for c in both.choices] == ["van", "dog"]
    assert gap(texts, both.map, "a photo of a car", "a photo of a van") < 0.6
    assert gap(texts, both.map, "a photo of a cat", "a photo of a dog") < 0.6


def test_edit_without_a_target_leaves_the_concept_out(texts):
    found = edit(texts, [CAR], UCE, vocabulary=WORDS)
    assert found.choices[0].target is None
    assert gap(texts, found.map, "a photo of a red car", "a photo of a red") < 1


def test_edit_reports_the_energy_that_its_rank_keeps(texts):
    whole = edit(texts, [CAR], replace(CLOSED_FORM, rank=128), targets=["van"], vocabulary=WORDS)
    cut = edit(texts, [CAR], replace(CLOSED_FORM, rank=2), targets=["van"], vocabulary=WORDS)
    assert 0.5 < cut.kept < 0.999 <= whole.kept
    assert whole.map.rank < 128  # where less is enough
    assert (cut.map.rank, cut.rank) == (2, whole.rank)
    one = edit(texts, [Concept("car")], replace(UCE, prompts=3), targets=["van"], vocabulary=WORDS)
    assert one.rank == 3  # one row for each prompt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "`rank` must be positive"),
        ({"keep_weight": -1.0}, "`keep_weight` must not be negative"),
        ({"cosine": (0.9, 0.7)}, "`cosine` is a range"),
        (
            {"choose": "nearby"},
            r"No `choose` 'nearby'. Did you mean 'nearest'\? Known: given, near",
        ),
        ({"tokens": "first"}, r"No `tokens` 'first'.* Known: last, last_to_end, all, around"),
        ({"aim": "tensors"}, r"No `aim` 'tensors'. Did you mean 'tensor'"),
        ({"solver": "rece"}, "`solver` is a solver such as .*; got 'rece'"),
        ({"solver": Regenerate}, "`solver` is a solver such as"),
    ],
)
def test_edit_refuses_bad_settings(changes, message):
    with pytest.raises(ErasureError, match=message):
        Edit("mine", **changes)


@pytest.mark.parametrize("name", EDITS)
def test_edit_numbers_are_json(name):
    assert json.loads(json.dumps(EDITS[name].numbers())) == EDITS[name].numbers()


def test_choose_nearest_takes_the_nearest_word(texts):
    recipe = replace(CLOSED_FORM, choose="nearest", general=False)
    (choice,) = edit(texts, [CAR], recipe, vocabulary=WORDS).choices
    (near,) = distances(texts, [CAR], [WORDS.words])
    assert choice.target == next(iter(near)) == min(choice.scores, key=choice.scores.__getitem__)
    assert (choice.choice, choice.best) == ("nearest", "lowest")
    (other,) = edit(texts, [CAR], CLOSED_FORM, vocabulary=WORDS).choices
    assert choice.scores != other.scores


def test_rivals_of_a_target_are_near_the_concept_itself(texts, monkeypatch):
    """Of many own words only the concept's shortlist, whatever is erased beside it."""
    for module in (edit_module, shortlist):
        monkeypatch.setattr(module, "MANY", 16)
    monkeypatch.setattr(shortlist, "SHORT", 12)
    rivals, original = {}, choosing._least_damage

    def least_damage(texts, concept, near, *others):
        rivals[concept.name] = {*near}
        return original(texts, concept, near, *others)

    monkeypatch.setattr(choosing, "_least_damage", least_damage)
    edit(texts, [Concept("truck"), Concept("oak"), Concept("cat")], CLOSED_FORM)
    assert [*rivals] == ["truck", "oak", "cat"]
    assert all(0 < len(words) <= 12 for words in rivals.values())
