import pytest
import torch

from diffusers_erase.concepts import (
    TEMPLATES,
    Concept,
    Prompt,
    Vocabulary,
    filled,
    kind_of,
    prompts_naming,
    scenes,
    with_article,
)
from diffusers_erase.concepts.phrases import (
    concept_of,
    kind_among,
    merged,
    names_in,
    unframed,
)
from diffusers_erase.concepts.words import plural, singulars
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.text_states import encode, unknown_words
from diffusers_erase.playground.world import words


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("a photo of a red car on the beach", "a photo of a red truck on the beach"),
        ("a car", "a truck"),
        ("a Car and a carpet", "a truck and a carpet"),
    ],
)
def test_replaced_changes_no_other_word(text, replaced):
    assert Concept("car").replaced(text, "truck") == replaced


def test_replaced_changes_only_the_article_before_the_name():
    car = Concept("car")
    assert car.replaced("a car at night", "oak") == "an oak at night"
    assert (
        car.replaced("A car by an unicorn and a hour", "Oak") == "An Oak by an unicorn and a hour"
    )
    assert car.replaced("an SUV behind a car", "{}") == "an SUV behind a {}"


def test_replaced_finds_synonyms_and_the_longest_name_first():
    concept = Concept("truck", synonyms=("fire truck", "lorry"))
    assert concept.replaced("a lorry and a fire truck", "car") == "a car and a car"


@pytest.mark.parametrize(
    "phrase",
    ["a car", "an oak", "a unicorn", "an umbrella", "an uninvited guest", "a user", "a UFO",
     "a ukulele", "a European", "an hour", "an honest man", "a house", "a one-eyed cat", "an onion",
     "a uniform", "an unimportant car", "an owl", "a Utah road", "an utter mess", "an urchin",
     "an unidentified object", "a USB stick", "a U-boat", "an x-ray", "a onesie", "an MRI scan",
     "an SUV", "a van"],
)  # fmt: skip
def test_with_article_goes_by_sound(phrase):
    assert with_article(phrase.partition(" ")[2]) == phrase


def test_filled_puts_names_into_templates_with_or_without_an_article():
    assert filled("a photo of {a} by {}", "oak") == "a photo of an oak by oak"
    assert filled("{a} and {}", "{a}") == "a {a} and {a}"  # names are taken literally


def test_own_templates_are_not_rewritten():
    """Articles, doubled spaces and words that look like the concept's name stay as written."""
    written = ("an unicorn beside a {}", "an SUV  like a {}", "a car and {}", "a hour of {}")
    prompts = Concept("car", prompts=written).example_prompts()
    assert [p.text for p in prompts] == [text.replace("{}", "car") for text in written]
    assert [p.about("oak") for p in prompts] == [text.replace("{}", "oak") for text in written]


@pytest.mark.parametrize(
    ("kind", "template", "without"),
    [
        ("object", "a photo of a red {} on the beach", "a photo of a red on the beach"),
        ("object", "a photo of {a}", "a photo"),
        ("object", "a photo of a {}", "a photo"),
        ("object", "a photo of {a} at night", "a photo of an at night"),
        ("object", "{a} and a hour", "an and a hour"),
        ("style", "a painting of a house in the style of {}", "a painting of a house"),
        ("style", "a house by {} at night", "a house at night"),
        ("style", "a house in the manner of {a}, at night", "a house, at night"),
        ("style", "a painting in the style of {}", "a painting"),
        ("person", "a portrait of {} at a desk", "a portrait of a person at a desk"),
        ("person", "a portrait of {a} at a desk", "a portrait of a person at a desk"),
        ("attribute", "{a} house at night", "a house at night"),
        ("attribute", "{a} hour at night", "an hour at night"),
        ("attribute", "a house that is {}", "a house"),
        ("place", "a photo of a red house {in}", "a photo of a red house"),
        ("place", "a house {in}, painted", "a house, painted"),
        ("place", "a photo of the {}", "a photo"),
        ("place", "a house on the {} today", "a house today"),
        ("place", "a house in {a}", "a house"),
        ("compound", "a photo of {a} at night", "a photo at night"),
        ("compound", "{a}", ""),
    ],
)
def test_without_keeps_the_rest_of_the_prompt(kind, template, without):
    prompt = Prompt(template, "oak", kind)
    assert prompt.without() == prompt.about(None) == without


@pytest.mark.parametrize("kind", TEMPLATES)
def test_example_prompts_name_the_concept_and_lose_it(kind):
    concept = Concept("old oak" if kind == "compound" else "oak", kind, synonyms=("elm",))
    prompts = concept.example_prompts()
    assert len(prompts) == 2 * len(TEMPLATES[kind])
    for prompt in prompts:
        assert "{" not in prompt.text
        assert concept.is_named_in(prompt.text)
        assert not concept.is_named_in(prompt.without())


def test_prompt_replaces_the_name_in_its_slot_and_no_equal_word():
    (prompt,) = Concept("night", prompts=("{a} at night",)).example_prompts()
    assert prompt.text == "a night at night"
    assert prompt.about("car") == "a car at night"
    assert prompt.without() == "an at night"


def test_prompts_naming_say_each_word_in_so_many_templates():
    assert prompts_naming(["oak", "night"], "object", 2) == [
        "a photo of an oak", "a cyan oak", "a photo of a night", "a cyan night",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "  "}, "empty"),
        (
            {"name": "car", "kind": "verb"},
            "Known: object, style, person, attribute, place, compound",
        ),
        ({"name": "car", "kind": "compound"}, "'car' is one word"),
        ({"name": 5}, "are strings; got 5"),
        ({"name": "car", "synonyms": (None,)}, "are strings; got None"),
        ({"name": "car", "prompts": ("a car",)}, r"no '\{\}'"),
        ({"name": "car", "synonyms": ("",)}, "synonyms of 'car' is empty"),
        ({"name": "car", "synonyms": "auto"}, "not one string"),
    ],
)
def test_concept_refuses_empty_names_and_bad_templates(arguments, message):
    with pytest.raises(ErasureError, match=message):
        Concept(**arguments)


@pytest.mark.parametrize(
    ("word", "near"),
    [("lighthuose", "lighthouse"), ("vehcle", "vehicle"), ("unicorn", None), ("qwxzv", None)],
)
def test_words_seen_in_fragments_are_unknown_and_words_near_them_are_named(untrained, word, near):
    found = unknown_words(untrained.tokenizer, f"red {word}")
    assert list(found) == [word]
    assert near is None or near in found[word]


def test_every_word_of_the_world_is_known(untrained):
    assert unknown_words(untrained.tokenizer, " ".join(words())) == {}


@pytest.mark.parametrize("count", [5, 24, 32, 64])
def test_example_prompts_are_spread_over_templates_and_names(count):
    concept = Concept("car", synonyms=("automobile", "sedan"))
    prompts = concept.example_prompts(count)
    uses = [sum(prompt.name == name for prompt in prompts) for name in concept.names]
    assert sum(uses) == len(prompts) == count
    assert min(uses) >= count // 5
    assert len(set(prompts)) == count


def test_names_with_punctuation_are_found_and_only_whole_names():
    concept = Concept("Dr. Seuss Jr.")
    assert concept.replaced("a page by dr. seuss jr. today", "nobody") == "a page by nobody today"
    assert Concept("car").replaced("a carpet", "oak") == "a carpet"


def test_replaced_takes_the_target_literally():
    assert Concept("car").replaced("a car", r"\1 truck") == r"a \1 truck"


def test_states_are_those_the_pipeline_would_use(untrained):
    states = encode(untrained, ["a car", ""])
    tokens = untrained.tokenizer(["a car", ""], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(states, untrained.text_encoder(tokens)[0])


def test_names_are_known_in_the_plural_and_inside_longer_names():
    truck = Concept("truck", synonyms=("lorry",))
    assert all(truck.is_named_by(text) for text in ("truck", "Trucks", " lorry"))
    assert not any(truck.is_named_by(text) for text in ("fire truck", "trucker", "car"))
    assert all(truck.is_named_in(text) for text in ("a fire truck", "two trucks at night"))
    assert not any(truck.is_named_in(text) for text in ("trucker", "a red car"))
    cherry = Concept("cherry")
    assert cherry.is_named_by("the cherries")
    assert cherry.is_named_in("two cherries at night")
    assert not cherry.is_named_in("cherrywood")
    assert Concept("->").is_named_by("->")
    assert not Concept("->").is_named_in("a car")


def test_vocabulary_others_leave_out_names_of_the_concept():
    words = Vocabulary(("truck", "fire truck", "car", "lorry", "oak"))
    erased = [Concept("truck", synonyms=("lorry",))]
    assert words.others(erased) == ("fire truck", "car", "oak")


def test_vocabulary_reads_a_text_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# vehicles\ncar\n\n fire truck \ncar\n")
    assert Vocabulary.read(path).words == ("car", "fire truck")
    (tmp_path / "none.txt").write_text("# nothing\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("none.txt", "holds no words"),
        ("missing.txt", "Cannot read the vocabulary"),
        ("/dev/zero", "Cannot read the vocabulary"),
        ("bytes.txt", "Cannot read the vocabulary"),
    ):
        with pytest.raises(ErasureError, match=message):
            Vocabulary.read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("car", "object"), ("fire truck", "object"), ("seuratti", "object"),
        ("Big Ben", "compound"), ("Red Car", "compound"), ("carpet", "object"),
        ("night sky", "object"),
        ("red", "attribute"), ("Red", "attribute"), ("dark red", "attribute"),
        ("wooden", "attribute"), ("striped", "attribute"), ("tiny", "attribute"),
        ("broken", "attribute"), ("beach", "place"), ("Night", "place"), ("sunset", "place"),
        ("red car", "compound"), ("RED CAR", "compound"), ("red fire truck", "compound"),
        ("light blue car", "compound"), ("old wooden church", "compound"),
    ],
)  # fmt: skip
def test_kinds_are_inferred_from_names(name, kind):
    assert kind_of(name) == Concept(name).kind == kind
    assert Concept(name, "style").kind == "style"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("red car", ("red", "car")),
        ("red fire truck", ("red", "fire truck")),
        ("dark red car", ("dark red", "car")),
        ("light bulb", ("light", "bulb")),
        ("flying cat", ("flying", "cat")),
        ("tall old", ("tall", "old")),
    ],
)
def test_compounds_have_an_attribute_and_a_head(name, parts):
    assert Concept(name, "compound").parts == parts
    assert Concept(name, "object").parts == ()


def test_prompts_of_a_compound_name_no_other_colour():
    texts = [prompt.text for prompt in Concept("red car").example_prompts()]
    assert len(texts) == len(set(texts)) == len(TEMPLATES["compound"])
    assert not any("blue" in text or "red red" in text for text in texts)


def test_neighbours_of_a_compound_are_its_head_and_its_attribute_apart():
    kept = Concept("red car", synonyms=("blue car", "red cat")).kept_prompts()
    assert kept[:3] == ("a photo of a car", "a photo of an orange car", "a photo of a red house")
    assert {"a car", "a green car", "a red dog", "a picture of a car"} <= set(kept)
    assert not any("red car" in p or "blue car" in p or "red cat" in p for p in kept)
    old = Concept("broken clock").kept_prompts()
    assert old[1:3] == ("a photo of an old clock", "a photo of a broken house")
    assert not any("clock" in p for p in old if "broken" in p)
    several = Concept("old red car").kept_prompts()
    assert {"a photo of an old car", "a photo of a red car"} <= set(several)
    assert Concept("car").kept_prompts() == Concept("red").kept_prompts() == ()


@pytest.mark.parametrize(
    ("place", "phrase"),
    [("beach", "on the beach"), ("night", "at night"), ("snow", "in the snow"),
     ("field", "in a field"), ("kitchen", "in the kitchen"), ("the city", "in the city"),
     ("under water", "under water"), ("Paris", "in Paris"), ("NIGHT", "at night")],
)  # fmt: skip
def test_places_bring_their_prepositions(place, phrase):
    prompt = Prompt("a house {in}, painted", "beach", "place")
    assert prompt.text == "a house on the beach, painted"
    assert prompt.about(place) == f"a house {phrase}, painted"
    assert prompt.about(None) == "a house, painted"


def test_a_place_with_its_own_preposition_stands_in_no_other():
    texts = [prompt.text for prompt in Concept("under the stars", "place").example_prompts()]
    assert texts[0] == "a photo of a house under the stars"
    assert not any("the under" in text or "in under" in text for text in texts)
    assert len(texts) == len(TEMPLATES["place"]) - 2


def test_prompts_naming_take_single_words_for_every_kind():
    assert prompts_naming(["car", "blue car"], "compound", 1) == [
        "a photo of a car", "a photo of a blue car",
    ]  # fmt: skip
    assert prompts_naming(["night"], "place", 1) == ["a photo of a house at night"]


@pytest.mark.parametrize(
    ("concept", "overlapping", "apart"),
    [
        (
            "bell tower",
            ("bell", "towers", "the Bell Tower", "tower bell"),
            ("belfry", "bells ring"),
        ),
        ("truck", ("fire truck", "Trucks", "two trucks at night"), ("car", "trucker", "")),
        ("red car", ("car", "red", "a big red car"), ("blue car", "red bus", "scarlet")),
        ("wolf", ("wolves",), ("wolverine",)),
        ("cherry", ("cherries", "cherry tree"), ("cher",)),
        ("bus", ("buses",), ("busy",)),
    ],
)
def test_names_that_share_their_words_overlap(concept, overlapping, apart):
    for erased in (Concept(concept), Concept("thing", synonyms=(concept,))):
        assert all(erased.names_overlap(text) for text in overlapping)
        assert not any(erased.names_overlap(text) for text in apart)


def test_scenes_name_each_word_beside_another_one_first_and_second_plain_and_coloured():
    assert scenes(["car", "oak"], count=2) == [
        "a photo of a car and an oak",
        "a photo of a red car and a green oak",
        "a photo of a car and an oak",
        "a photo of a green car and a red oak",
    ]
    words = [f"word{i}" for i in range(30)]
    found = scenes(words)
    assert len(found) == 60
    assert all(text.count("word") == 2 and text.split(" and ")[0] != text for text in found)
    assert all(len({w for w in text.split() if "word" in w}) == 2 for text in found)  # never itself
    partners = [w for text in found[:2] for w in text.split() if "word" in w and w != "word0"]
    assert len(set(partners)) == 2
    assert scenes(["dog"], beside=["dog", "cat"], count=1) == ["a photo of a dog and a cat"]
    assert "dog" in scenes(["dog"], count=1)[0]  # beside a general subject


@pytest.mark.parametrize(
    ("word", "kind", "text"),
    [
        ("Marie", "person", "a photo of Marie and Albert"),
        ("red car", "compound", "a photo of a red car and an Albert"),
        ("van gyre", "style", "a painting of a red house and a dog in the style of van gyre"),
        ("red", "attribute", "a photo of a red house and a car"),
        ("beach", "place", "a photo of a house and a car on the beach"),
    ],
)
def test_scenes_of_every_kind(word, kind, text):
    assert scenes([word], kind, ["Albert"], count=1) == [text]


@pytest.mark.parametrize(
    ("text", "name", "kind"),
    [
        ("seuratti style", "seuratti", "style"),
        ("in the style of seuratti", "seuratti", "style"),
        ("The style of lumina", "lumina", "style"),
        ("style of van gyre", "van gyre", "style"),
        ("in the manner of van gyre", "van gyre", "style"),
        ("painting by lumina", "lumina", "style"),
        ("a painting by van gyre", "van gyre", "style"),
        ("lumina painting", "lumina", "style"),
        ("lumina's style", "lumina", "style"),
        ("lumina's  paintings", "lumina", "style"),
        ("artwork by lumina", "lumina", "style"),
        ("art by lumina", "lumina", "style"),
        ("a drawing in the style of the impressionists", "impressionists", "style"),
        ("an oil painting", "oil painting", "object"),
        ("red painting", "red painting", "compound"),
        ("painting", "painting", "object"),
        ("the style", "style", "object"),
        ("a photo of a car", "car", "object"),
        ("a painting of a red car", "red car", "compound"),
        ("the car", "car", "object"),
        ("portrait of Ada Lovelace", "Ada Lovelace", "person"),
        ("on the beach", "beach", "place"),
        ("at night", "night", "place"),
        ("by the sea", "sea", "place"),
        ("in a kitchen", "kitchen", "place"),
        ("in the kitchen", "kitchen", "place"),
        ("under the stars", "under the stars", "place"),
        ("under the sea", "under the sea", "place"),
        ("on the Moon", "on the Moon", "place"),
        ("at the beach", "beach", "place"),
        ("in love", "in love", "object"),
        ("a", "a", "object"),
        ("in the style of red", "red", "style"),
        ("in the style of night", "night", "style"),
        ("the style of a beach", "beach", "style"),
        ("painting by red", "red", "style"),
        ("the red style", "red", "style"),
        ("oil painting style", "oil painting", "style"),
        ("pixel art style", "pixel art", "style"),
        ("Picasso art", "Picasso", "style"),
        ("painted by Van Gogh", "Van Gogh", "style"),
        ("picasso-inspired", "picasso", "style"),
        ("the artist Picasso", "Picasso", "style"),
        ("the painter van gyre", "van gyre", "style"),
        ("artist drawing a cat", "artist drawing a cat", "object"),
        ("the painter", "painter", "object"),
        ("the works of Picasso", "Picasso", "style"),
        ("style: Picasso", "Picasso", "style"),
        ("'in the style of red'", "red", "style"),
        ("the style of Picasso.", "Picasso", "style"),
        ("van Gogh's Starry Night", "van Gogh's Starry Night", "object"),
        ("concept art", "concept art", "object"),
        ("a beach scene", "beach", "place"),
        ("a winter landscape", "winter", "place"),
        ("night painting", "night", "place"),
        ("photo of the beach", "beach", "place"),
        ("beaches", "beaches", "place"),
        ("in autumn", "autumn", "place"),
        ("in Paris", "Paris", "place"),
        ("in blue", "blue", "attribute"),
        ("something red", "red", "attribute"),
        ("red objects", "red", "attribute"),
        ("the colour red", "red", "attribute"),
        ("a photo of the color red", "red", "attribute"),
        ("an orange", "orange", "object"),
        ("orange", "orange", "attribute"),
        ("a black and white photo of a car", "car", "object"),
        ("all cars", "cars", "object"),
        ("All Saints", "All Saints", "object"),
        ("3 cars", "cars", "object"),
        ("two red cars", "red cars", "compound"),
        ("101 Dalmatians", "101 Dalmatians", "object"),
        ("All cars", "cars", "object"),
        ("Three cars", "cars", "object"),
        ("7 up", "7 up", "object"),
        ("five star hotel", "five star hotel", "object"),
        ("all terrain vehicle", "all terrain vehicle", "object"),
        ("'car'", "car", "object"),
        ("“the car”", "car", "object"),
        ("a car!", "car", "object"),
        ("Dr. Seuss Jr.", "Dr. Seuss Jr.", "object"),
        ("Campbell's soup", "Campbell's soup", "object"),
        ("cars at night", "cars at night", "object"),
        ("東京タワー", "東京タワー", "object"),
        ("🚗", "🚗", "object"),
        ("...", "...", "object"),
    ],
)
def test_names_are_found_in_the_frames_that_users_write(text, name, kind):
    assert concept_of(text) == Concept(name, kind)


def test_a_kind_that_is_given_decides_about_the_frame():
    assert concept_of("seuratti style", "style") == Concept("seuratti", "style")
    assert concept_of("seuratti style", "object") == Concept("seuratti style", "object")
    assert concept_of("a photo of a red car", "object") == Concept("red car", "object")
    assert concept_of("mauve", among="attribute") == Concept("mauve", "attribute")
    assert concept_of("beach", among="attribute") == Concept("beach", "place")
    assert unframed("mauve") == ("mauve", None)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("red", "blue", "mauve", "green", "cyan"), "attribute"),
        (("beach", "at night", "snow"), "place"),
        (("lumina style", "by seuratti"), "style"),
        (("red", "car"), None),
        (("red",), None),
        (("red car", "blue car"), None),
        ((), None),
    ],
)
def test_a_vocabulary_tells_a_kind_if_almost_all_its_words_have_it(words, kind):
    assert kind_among(words) == kind


@pytest.mark.parametrize("text", [
    "car, truck", "car; truck", "car,truck", "car and truck", "car & truck", "car / truck",
    "car/truck", "car | truck",
    " car \n truck ", "car AND truck", "car or truck", "car + truck",
])  # fmt: skip
def test_separators_are_seen_in_lists_of_names(text):
    assert [name.lower() for name in names_in(text)] == ["car", "truck"]


def test_separators_are_not_seen_in_single_names():
    assert all(names_in(n) == (n,) for n in ("fire truck", "sandbox", "AC/DC", "AT&T", "orchid"))


def test_names_that_differ_by_case_articles_or_plural_are_one_concept():
    listed = [Concept("car"), Concept("Cars", synonyms=("auto",)), Concept("oak"), Concept("a car")]
    assert merged(listed) == (Concept("car", synonyms=("auto",)), Concept("oak"))
    assert merged([Concept("oak"), Concept("oak", "style")]) == (
        Concept("oak"), Concept("oak", "style"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "many"),
    [("car", "cars"), ("church", "churches"), ("bus", "buses"), ("fox", "foxes"),
     ("butterfly", "butterflies"), ("boy", "boys"), ("house", "houses"), ("potato", "potatoes"),
     ("photo", "photos"), ("cactus", "cacti"), ("wolf", "wolves"), ("fire truck", "fire trucks"),
     ("bush", "bushes"), ("Car", "Cars"), ("man", "men")],
)  # fmt: skip
def test_plurals_and_singulars_are_inverse(one, many):
    assert plural(one) == many
    assert plural(many) == many
    assert singulars(many)[0] == one.lower()
    assert singulars(one) == ()


@pytest.mark.parametrize(
    "name", ["bus", "glass", "news", "jeans", "Paris", "The Simpsons", "men in cars", "🚗"]
)
def test_names_without_another_number_stay(name):
    assert singulars(name) == ()


@pytest.mark.parametrize("text", ["the style of", "in the style of", "a photo of", "painting by"])
def test_a_frame_without_a_name_is_refused(text):
    with pytest.raises(ErasureError, match=r"names nothing after '(of|by)'"):
        unframed(text)
