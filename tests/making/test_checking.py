"""The check of a new eraser, with erasers that are known to erase and known not to."""

from dataclasses import replace

import pytest
import torch

from diffusers_erase import Concept, NotErasedError, erase
from diffusers_erase.concepts.phrases import concept_of
from diffusers_erase.editing.choosing import general_names, things_among
from diffusers_erase.editing.own_prompts import own_words
from diffusers_erase.editing.texts import texts_of
from diffusers_erase.eraser.stacking import scaled
from diffusers_erase.making import check_pictures, checking, trying
from diffusers_erase.making.checking import Check, check_eraser
from diffusers_erase.making.request import Request, as_concepts, as_recipe, as_vocabulary
from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.model import Model
from diffusers_erase.playground import FAMILIES, OBJECTS
from diffusers_erase.training.targets import Fixed


def solved(pipe, concept, **given):
    options = {"recipe": "closed-form", "check": False, "progress": False}
    return erase(pipe, concept, **{**options, **given})


@pytest.fixture(scope="module")
def truck(shipped):
    return solved(shipped, "truck", vocabulary=OBJECTS)


def checked(pipe, eraser, *concepts):
    return check_eraser(Model.of(pipe), [Concept(name) for name in concepts], eraser)


def test_an_eraser_that_erases(playground, truck):
    before = {k: v.clone() for k, v in playground.unet.state_dict().items()}
    with counted(playground.unet) as cost:
        found = checked(playground, truck, "truck")
    assert found.verdict == found.concepts["truck"] == "erased"
    assert found.left == {"truck": 0.0}
    assert found.evidence["truck"] < -0.8
    assert not found.harms
    assert 0 < found.layout < 1
    assert cost() < 90
    assert playground.list_erasures() == {}
    assert all(torch.equal(v, before[k]) for k, v in playground.unet.state_dict().items())


def test_an_eraser_too_weak(playground, truck):
    found = checked(playground, scaled(truck, 0.2), "truck")
    assert found.verdict == "not erased"
    assert found.left["truck"] == 1
    assert found.failed == ["truck"]


def test_a_target_of_the_same_meaning(playground):
    found = checked(playground, solved(playground, "diamond", target="rhombus"), "diamond")
    assert found.verdict == "not erased"
    assert found.layout > 0.9


def test_a_method_of_a_paper_that_leaves_the_concept(playground):
    found = checked(playground, solved(playground, "bird", recipe="uce"), "bird")
    assert found.failed == ["bird"]


def test_another_erased_concept_that_is_drawn_instead(playground):
    eraser = solved(playground, ["cat", "dog"], target=("bird", "kitten"))
    found = checked(playground, eraser, "cat", "dog")
    assert found.mistaken == {"dog": "cat"}
    assert found.concepts["cat"] == "erased"
    assert found.concepts["dog"] == "not erased"
    assert "'dog' is drawn as 'cat'" in found.sentences()


def test_harm_to_the_nearest_words(playground, truck):
    """An eraser of buses that says it is one of trucks, to which buses are near."""
    bus = solved(playground, "bus", vocabulary=OBJECTS)
    found = checked(playground, replace(bus, config=truck.config), "truck")
    assert set(found.harms) == {"bus"}
    assert found.harms["bus"] > 0.5
    assert found.verdict == "not erased"


def test_words_for_many_things_are_found_and_no_others(shipped):
    texts = texts_of(shipped)
    words = things_among(own_words(texts.tokenizer))
    asked = [Concept(name) for name in (*FAMILIES, *OBJECTS[::4], "fir", "penguin")]
    assert [c.name for c in asked if general_names(texts, c, words)] == [*FAMILIES]
    car = Concept("car", synonyms=("vehicle",))
    assert general_names(texts, car, words) == ["vehicle"]
    assert general_names(texts, Concept("vehicle", synonyms=FAMILIES["vehicle"]), words) == []
    pairs = [Concept(name, "compound") for name in ("pink tree", "pink oak")]
    assert [general_names(texts, pair, words) for pair in pairs] == [["pink tree"], []]


@pytest.mark.parametrize(
    ("name", "named"),
    [("car on the beach", ["car"]), ("old red car", ["old car", "red car"]), ("red car", []),
     ("fire truck", [])],
)  # fmt: skip
def test_things_that_a_long_name_names_are_compared_too(name, named):
    assert check_pictures._words_within(concept_of(name)) == named


@pytest.mark.parametrize("name", ["vehicle", pytest.param("animal", marks=pytest.mark.slow)])
def test_a_word_for_many_things_is_not_replaced_by_one_of_these(playground, name):
    eraser = erase(playground, name, recipe="closed-form", progress=False, check=False)
    assert eraser.config.concepts[0].target not in FAMILIES[name]
    found = checked(playground, eraser, name)
    assert found.verdict == "erased"
    member = erase(playground, name, target="bus" if name == "vehicle" else "bird", check=False)
    found = checked(playground, member, name)
    assert found.concepts[name] == "not erased"


def test_a_name_that_is_still_drawn_by_itself_and_a_synonym_that_the_base_does_not_draw(playground):
    car = Concept("car", "style", synonyms=("skywagon",))
    with pytest.warns(UserWarning, match="does not know the word 'skywagon'"):
        eraser = solved(playground, car)
    found = check_eraser(Model.of(playground), [car], eraser)
    assert found.things == ("car",)
    assert "skywagon" in found.unknown
    assert found.unclear
    said = found.sentences()
    assert any("'car' by itself is still drawn as before" in sentence for sentence in said)
    assert any("'skywagon' could not be checked" in sentence for sentence in said)
    assert found.to_dict()["things"] == ["car"]


def test_a_model_that_does_not_draw_the_concept(untrained):
    found = checked(untrained, solved(untrained, "car", target="oak"), "car")
    assert found.verdict == "not checked"
    assert "does not draw it" in found.reason
    assert not found.failed


def test_a_model_without_a_denoiser(playground):
    playground.register_modules(unet=None)
    eraser = erase(playground, "truck", vocabulary=OBJECTS, progress=False)
    found = eraser.config.results["check"]
    assert found["verdict"] == "not checked"
    assert "no denoiser" in found["reason"]


def test_an_error_while_checking_leaves_the_base(playground, truck, monkeypatch):
    monkeypatch.setattr(checking.Harm, "measured", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checked(playground, truck, "truck")
    assert playground.list_erasures() == {}


def request_for(recipe, target=None):
    words = as_vocabulary(OBJECTS)
    return Request(as_concepts("truck"), as_recipe(recipe), words, target, (), (), 0)


@pytest.fixture
def tried(playground, truck, monkeypatch):
    """`tried(request, verdicts)`: the requests that follow one another for these verdicts."""
    requests = []

    def run(request, verdicts, promising=True):
        left = iter(verdicts)

        def check(_model, concepts, _eraser):
            verdict = next(left)
            gain = 0.3 * len(requests) if promising else 0.01 * len(requests)
            return Check(verdict, {concepts[0].name: verdict}, {"truck": -gain})

        def make(request):
            requests.append(request)
            chosen = truck.config.concepts[0]
            if request.target is not None:
                word = request.target.for_each(request.concepts)[0]
                chosen = type(chosen)("truck", target=word)
            return truck.__class__(truck.payloads, truck.config.__class__((chosen,), rank=8))

        monkeypatch.setattr(trying, "check_eraser", check)
        eraser, check = trying._make_and_check(
            make, Model.of(playground), request, say=lambda _: None
        )
        return eraser, check, requests

    return run


def test_the_first_eraser_is_taken_if_it_erases(tried):
    eraser, check, requests = tried(request_for("closed-form"), ["erased"])
    assert len(requests) == 1
    assert check.verdict == "erased"
    assert "tries" not in eraser.config.results["check"]


def test_the_next_candidate_is_tried_and_its_score_is_kept(tried, truck):
    first = truck.config.concepts[0]
    following = next(word for word, _ in first.ranked if word != first.target)
    eraser, check, requests = tried(request_for("closed-form"), ["not erased", "erased"])
    assert requests[1].target == Fixed((following,))
    assert requests[1].attempt == 1
    assert check.verdict == "erased"
    chosen = eraser.config.concepts[0]
    assert chosen.target == following
    assert chosen.scores == first.scores
    verdicts = [each["verdict"] for each in eraser.config.results["check"]["tries"]]
    assert verdicts == ["not erased", "erased"]


def test_the_best_of_all_tries_is_taken(tried):
    verdicts = ["weak", "not erased", "not erased", "not erased"]
    _, check, requests = tried(request_for("closed-form"), verdicts)
    assert len(requests) == trying.SOLVED
    assert check.verdict == "weak"


def test_a_weak_eraser_is_made_stronger_and_keeps_its_target(tried, truck):
    request = request_for("closed-form")
    _, _, requests = tried(request, ["weak", "weak", "erased"])
    assert [each.recipe.keep_weight for each in requests] == [
        request.recipe.keep_weight / factor for factor in trying.STRENGTHS
    ]
    target = truck.config.concepts[0].target
    assert [each.target for each in requests[1:]] == [Fixed((target,))] * 2


def test_another_target_is_tried_where_a_stronger_recipe_gains_nothing(tried, truck):
    verdicts = ["weak", "weak", "erased"]
    _, _, requests = tried(request_for("closed-form"), verdicts, promising=False)
    first = truck.config.concepts[0]
    following = next(word for word, _ in first.ranked if word != first.target)
    assert [each.target for each in requests[1:]] == [Fixed((first.target,)), Fixed((following,))]


def test_a_target_of_the_user_s_is_kept_and_the_recipe_made_stronger(tried):
    request = request_for("closed-form", Fixed("van"))
    _, _, requests = tried(request, ["weak", "weak", "weak"])
    assert [each.target for each in requests] == [Fixed("van"), Fixed(("van",)), Fixed(("van",))]
    assert [each.recipe.rank for each in requests] == [8, 16, 32]


def test_no_further_target_is_drawn_like_the_concept_or_like_one_before(truck):
    first = truck.config.concepts[0]
    near, alike, far, *_ = (word for word, _ in first.ranked if word != first.target)
    row = {word: 9.0 for word, _ in first.ranked}
    row |= {first.target: 2.0, near: 0.5, alike: 2.1, far: 2.3}
    check = Check("not erased", {"truck": "not erased"}, distances={"truck": row})
    one = trying._Try(request_for("closed-form"), truck, check)
    assert trying._untried([one], 0, first)[0] == far


def test_a_target_of_the_user_s_that_the_base_draws_like_the_concept_is_tried_once(truck):
    row = {truck.config.concepts[0].target: 0.1}
    near = Check("not erased", {"truck": "not erased"}, distances={"truck": row})
    given, chosen = (
        trying._Try(request_for("closed-form", target), truck, near)
        for target in (Fixed("x"), None)
    )
    assert trying._following([given]) is None
    assert trying._following([chosen]) is not None
    swapped = Check("not erased", {"truck": "not erased"}, mistaken={"truck": "car"})
    assert trying._following([replace(given, check=swapped)]) is None


def test_no_try_is_made_twice(tried):
    verdicts = ["not erased", "weak", "not erased", "not erased"]
    _, _, requests = tried(request_for("closed-form", Fixed("van")), verdicts)
    made = [(each.recipe, str(each.target)) for each in requests]
    assert len(made) == len(set(made))


def test_a_stronger_recipe_that_gains_nothing_is_not_tried_again_for_a_target_of_the_user_s(tried):
    request = request_for("closed-form", Fixed("van"))
    _, _, requests = tried(request, ["weak", "weak", "weak"], promising=False)
    assert len(requests) == 2


def test_a_target_that_the_base_draws_like_the_concept_is_found(playground):
    eraser = erase(playground, "van", target="vehicle", progress=False, check=False)
    found = checked(playground, eraser, "van")
    assert found.near_targets == {"van": "vehicle"}
    assert found.verdict != "erased"
    assert any("'vehicle' like 'van'" in sentence for sentence in found.sentences())
    eraser = erase(playground, "van", target="fish", progress=False, check=False)
    assert checked(playground, eraser, "van").near_targets == {}


def test_a_target_that_the_base_draws_like_a_synonym_is_found(playground):
    building = Concept("building", synonyms=("bell tower",))
    eraser = erase(playground, building, target="belfry", progress=False, check=False)
    found = check_eraser(Model.of(playground), [building], eraser)
    assert found.near_targets == {"building": "belfry"}
    assert found.badness == (3, float("inf"))


def test_one_picture_that_shows_it_is_enough_for_doubt():
    assert checking._verdict(-1.2, -0.4) == "erased"
    assert checking._verdict(-1.2, 0.8) == "weak"
    assert checking._verdict(0.1, 0.8) == "not erased"


def test_a_paper_s_recipe_is_run_as_it_is(tried):
    _, check, requests = tried(request_for("uce", Fixed("van")), ["not erased"])
    assert len(requests) == 1
    assert check.failed


def test_a_concept_that_is_still_drawn_is_an_error_or_where_that_is_allowed_a_warning(
    playground, monkeypatch
):
    check, found = trying.check_eraser, []

    def once(*asked):
        found[:] = found or [check(*asked)]
        return found[0]

    monkeypatch.setattr(trying, "check_eraser", once)
    with pytest.raises(NotErasedError, match=r"'bird' is .*`allow_weak=True`") as caught:
        erase(playground, "bird", recipe="uce", progress=False)
    assert caught.value.eraser.config.results["check"]["verdict"] != "erased"
    assert playground.list_erasures() == {}
    with pytest.warns(UserWarning, match="'bird' is "):
        eraser = erase(playground, "bird", recipe="uce", progress=False, allow_weak=True)
    assert eraser.config.results["check"]["concepts"]["bird"] in ("weak", "not erased")
