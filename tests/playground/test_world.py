import random
import re
from collections import Counter

import numpy as np
import pytest

from diffusers_erase.playground import (
    ARTISTS,
    BACKGROUNDS,
    COLOURS,
    FAMILIES,
    FAMILY_OF,
    OBJECTS,
    STYLES,
    SYNONYMS,
    Scene,
    Thing,
    captions,
    prompt,
    render,
    sample_scene,
)
from diffusers_erase.playground.world import (
    BACKGROUND_PHRASES,
    COARSE_STYLES,
    COMPANIONS,
    HABITATS,
    STYLE_PHRASES,
    with_article,
    words,
)


CAR = Scene((Thing("car"),), "swirl", "field")
SYNONYM_OF = {other: name for name, others in SYNONYMS.items() for other in others}


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(random.Random(index)) for index in range(4000)]


@pytest.fixture(scope="module")
def alone(scenes):
    """The scenes of one thing."""
    return [scene for scene in scenes if len(scene.things) == 1]


def mentions(phrases, text):
    """The phrases that stand in a text as whole words: a fire truck is not also a truck."""
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.findall(rf"\b(?:{'|'.join(longest_first)})\b", text)


def names_in(text):
    """Objects, families and synonyms in a text; a painter called van gyre is not a van."""
    painters = set(ARTISTS.values())
    found = mentions((*OBJECTS, *FAMILIES, *SYNONYM_OF, *painters), text)
    return [name for name in found if name not in painters]


def untruths(scene, caption):
    """Words of a caption that its scene does not show."""
    names = {
        name: {name, FAMILY_OF[name], *SYNONYMS.get(name, ())}
        for name in (thing.object for thing in scene.things)
    }
    shown = {
        f"{thing.colour} {word}" for thing in scene.things for word in names[thing.object]
    } | set().union(*names.values())
    said = names_in(caption)
    coloured = [f"{c} {word}" for c in COLOURS for word in said if f"{c} {word}" in caption]
    styles = {phrase: style for style, phrases in STYLE_PHRASES.items() for phrase in phrases}
    styles |= {artist: style for style, artist in ARTISTS.items()}
    places = {phrase: place for place, phrases in BACKGROUND_PHRASES.items() for phrase in phrases}
    return (
        [word for word in (*said, *coloured) if word not in shown]
        + [phrase for phrase in mentions(styles, caption) if styles[phrase] != scene.style]
        + [phrase for phrase in mentions(places, caption) if places[phrase] != scene.background]
    )


def test_world_is_large_enough():
    assert len(OBJECTS) == len(set(OBJECTS)) >= 40
    assert len(FAMILIES) >= 8
    assert min(len(names) for names in FAMILIES.values()) >= 5
    assert len(COLOURS) == 8
    assert STYLES[0] == "plain"
    assert tuple(ARTISTS) == STYLES[1:]
    assert len(set(ARTISTS.values())) == 8


def test_every_object_has_one_family_and_no_name_means_two_things():
    assert set(FAMILY_OF) == set(OBJECTS)
    assert all(name in FAMILIES[FAMILY_OF[name]] for name in OBJECTS)
    names = [*OBJECTS, *FAMILIES, *COLOURS, *ARTISTS.values()]
    names += [other for others in SYNONYMS.values() for other in others]
    assert len(names) == len(set(names))
    assert set(SYNONYMS) <= set(OBJECTS)


def test_some_names_stand_inside_others():
    names = (*OBJECTS, *FAMILIES, *SYNONYM_OF, *ARTISTS.values())
    inside = {(a, b) for a in OBJECTS for b in names if a != b and a in b.split()}
    assert inside == {("truck", "fire truck"), ("van", "van gyre")}


def test_everything_the_frequencies_speak_of_is_there():
    assert {name for pair in COMPANIONS for name in pair} | set(HABITATS) <= set(OBJECTS)
    assert {place for place, _ in HABITATS.values()} <= set(BACKGROUNDS) == set(BACKGROUND_PHRASES)
    assert set(COARSE_STYLES) < set(STYLES)
    assert set(STYLE_PHRASES) == set(ARTISTS)


@pytest.mark.parametrize("style", STYLES)
def test_render_is_determined_by_its_seed(style):
    scene = Scene((Thing("car"), Thing("oak", "green")), style, "field")
    random.seed(0)
    np.random.seed(0)
    picture = render(scene, 5)
    random.seed(1)
    np.random.seed(1)
    assert np.array_equal(picture, render(scene, 5))
    assert not np.array_equal(picture, render(scene, 6))
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8


def test_every_part_of_a_scene_is_seen():
    others = (
        Scene((Thing("truck"),), "swirl", "field"),
        Scene((Thing("car", "blue"),), "swirl", "field"),
        Scene((Thing("car"),), "plain", "field"),
        Scene((Thing("car"),), "swirl", "snow"),
        Scene((Thing("car"), Thing("car")), "swirl", "field"),
    )
    assert all(not np.array_equal(render(CAR, 0), render(other, 0)) for other in others)


def test_captions_are_determined_by_their_seed():
    random.seed(0)
    four = captions(CAR, seed=5)
    random.seed(1)
    assert four == captions(CAR, seed=5)
    assert four != captions(CAR, seed=6)
    assert four == captions(CAR, seed=5, count=9)[:4]
    assert len(four) == 4


def test_sample_scene_is_determined_by_its_random_numbers():
    assert sample_scene(random.Random(7)) == sample_scene(random.Random(7))
    assert len({sample_scene(random.Random(seed)) for seed in range(20)}) > 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Thing("unicorn"), "no object 'unicorn'. Known: circle, .*car, .*rabbit"),
        (lambda: Thing("car", "beige"), "no colour 'beige'. Known: red, .*pink"),
        (lambda: Scene((Thing("car"),), "cubism"), "no style 'cubism'. Known: plain, .*chalk"),
        (lambda: Scene((Thing("car"),), background="moon"), "no background 'moon'. Known: studio"),
        (lambda: Scene(()), "one or two things; got 0"),
        (lambda: Scene((Thing("car"),) * 3), "one or two things; got 3"),
    ],
)
def test_scenes_refuse_unknown_names(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_captions_say_nothing_untrue(scenes):
    for index, scene in enumerate(scenes):
        for caption in (*captions(scene, seed=index), prompt(scene)):
            assert untruths(scene, caption) == [], (scene, caption)


@pytest.mark.parametrize(
    ("caption", "untrue"),
    [
        ("a painting of a red sedan by van gyre in a field", []),
        ("a red fire truck", ["fire truck", "red fire truck"]),
        ("a van by van gyre", ["van"]),
        ("a blue automobile", ["blue automobile"]),
        ("a picture of a tree", ["tree"]),
        ("a car by lumina", ["lumina"]),
        ("a car as a sketch on the beach", ["as a sketch", "on the beach"]),
    ],
)
def test_check_of_captions_notices_an_untrue_one(caption, untrue):
    assert untruths(CAR, caption) == untrue


def test_people_use_names_synonyms_and_superset_words_and_leave_things_out(scenes):
    heard = Counter()
    for index, scene in enumerate(scenes):
        for caption in captions(scene, seed=index):
            said = names_in(caption)
            heard["synonym"] += any(word in SYNONYM_OF for word in said)
            heard["superset"] += any(word in FAMILIES for word in said)
            heard["nothing but style"] += not said
            heard["no colour"] += not mentions(COLOURS, caption)
            heard["all"] += 1
    share = {what: count / heard["all"] for what, count in heard.items()}
    assert 0.05 < share["synonym"] < 0.25
    assert 0.02 < share["superset"] < 0.08
    assert 0.01 < share["nothing but style"] < 0.04
    assert 0.15 < share["no colour"] < 0.35


def test_every_name_is_heard(scenes):
    heard = set()
    for index, scene in enumerate(scenes):
        for caption in captions(scene, seed=index):
            heard.update(names_in(caption))
    assert heard == {*OBJECTS, *FAMILIES, *SYNONYM_OF}


def test_every_word_anybody_says_is_known(scenes):
    known = set(words())
    said = {
        word
        for index, scene in enumerate(scenes)
        for caption in (*captions(scene, seed=index), prompt(scene))
        for word in caption.split()
    }
    assert said <= known
    assert "unicorn" not in known
    assert list(words()) == sorted(known)


def test_prompts_are_the_plainest_captions():
    assert prompt(Scene((Thing("car"),))) == "a photo of a red car"
    assert prompt(CAR) == "a painting of a red car in the style of van gyre"
    pair = Scene((Thing("oak", "orange"), Thing("fire truck", "blue")), background="snow")
    assert prompt(pair) == "a photo of an orange oak and a blue fire truck"


def test_with_article_chooses_an_before_vowels():
    assert [with_article(word) for word in ("oval", "ring")] == ["an oval", "a ring"]


def test_sample_scene_has_a_long_tail(alone):
    seen = Counter(scene.things[0].object for scene in alone)
    by_rank = [sum(seen[names[rank]] for names in FAMILIES.values()) for rank in range(5)]
    assert by_rank == sorted(by_rank, reverse=True)
    assert by_rank[0] > 1.8 * by_rank[4]
    assert set(seen) == set(OBJECTS)


def test_plain_pictures_are_the_most_and_every_style_is_seen(scenes):
    seen = Counter(scene.style for scene in scenes)
    assert set(seen) == set(STYLES)
    assert seen.most_common(1)[0][0] == "plain"
    assert seen["plain"] < len(scenes) / 2


@pytest.mark.parametrize("name", HABITATS)
def test_things_live_where_they_are_at_home(alone, name):
    home, share = HABITATS[name]
    places = [scene.background for scene in alone if scene.things[0].object == name]
    # The rest of its scenes lie anywhere, at home too.
    expected = share + (1 - share) / len(BACKGROUNDS)
    assert places.count(home) / len(places) == pytest.approx(expected, abs=0.13)


def test_things_without_a_home_are_everywhere(alone):
    places = Counter(s.background for s in alone if s.things[0].object not in HABITATS)
    assert set(places) == set(BACKGROUNDS)
    assert all(0.13 < count / places.total() < 0.21 for count in places.values())


def test_companions_come_together(scenes):
    pairs = [frozenset(t.object for t in scene.things) for scene in scenes if len(scene.things) > 1]
    together = Counter(pair for pair in pairs if pair in {frozenset(two) for two in COMPANIONS})
    assert 0.26 < len(pairs) / len(scenes) < 0.34
    assert 0.5 < together.total() / len(pairs) < 0.7
    assert len(together) == len(COMPANIONS)
    assert all(len(pair) == 2 for pair in pairs)


def test_coarse_styles_never_paint_two_things(scenes, alone):
    assert not [s for s in scenes if len(s.things) == 2 and s.style in COARSE_STYLES]
    assert {scene.style for scene in alone} >= set(COARSE_STYLES)
