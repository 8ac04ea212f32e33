import pytest

from diffusers_erase.concepts import TEMPLATES, Concept, filled
from diffusers_erase.concepts.candidates import is_kept
from diffusers_erase.editing.naming import Named
from diffusers_erase.playground import OBJECTS


NAMES = (
    *OBJECTS, "red car", "Van Gogh", "the wall", "knives", "café", "C++", "++", "levi's", "x_ray",
    "fire truck", "a team", "men in black", "cookie",
)  # fmt: skip
CONCEPTS = [Concept(name) for name in NAMES] + [Concept("cab", synonyms=("taxi driver", "Autos"))]
TEXTS = [
    *NAMES, *(filled(template, name) for name in NAMES for template in TEMPLATES["object"][::7]),
    "two cookies and a knife", "THE WALL of taxi drivers", "team", "levi", "an x_ray", "naïve cars",
    "C++ code", "+++ ++", "a man in black", "", "a truck",
]  # fmt: skip


@pytest.mark.parametrize("test", ["is_named_in", "is_named_by", "names_overlap"])
def test_all_that_a_text_names_is_among_those_near_it(test):
    named, found = Named(CONCEPTS), 0
    for text in TEXTS:
        near = named.near(text)
        expected = [c for c in CONCEPTS if getattr(c, test)(text)]
        assert [c for c in near if getattr(c, test)(text)] == expected
        found += len(expected)
    assert found > 10


def test_few_concepts_share_a_word_with_a_text():
    named = Named([Concept(f"{a}{b}") for a in OBJECTS for b in OBJECTS] + [Concept("oak")])
    assert [c.name for c in named.near("a photo of an oak")] == ["oak"]
    assert is_kept("an oak", "oak", named.near("an oak"))
