from diffusers_erase.concepts import Concept
from diffusers_erase.editing import shortlist
from diffusers_erase.editing.choosing import distances
from diffusers_erase.editing.own_prompts import OwnStatistics, own_words
from diffusers_erase.editing.texts import texts_of


def test_few_words_are_all_compared(playground):
    texts = texts_of(playground)
    words = own_words(texts.tokenizer)
    known = OwnStatistics.of(texts).without(texts)
    assert shortlist.shortlisted(texts, Concept("car"), known) == list(words)


def test_the_shortlist_has_the_nearest_words(playground, monkeypatch):
    monkeypatch.setattr(shortlist, "MANY", 100)
    texts = texts_of(playground)
    words, known = own_words(texts.tokenizer), OwnStatistics.of(texts).without(texts)
    for name in ("truck", "castle", "dog", "oval"):
        concept = Concept(name)
        found = shortlist.shortlisted(texts, concept, known)
        assert len(found) == shortlist.SHORT < 0.6 * len(words)
        (near,) = distances(texts, [concept], [words])
        assert len({*list(near)[:16]} & {*found}) >= 15
