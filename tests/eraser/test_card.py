"""The model card: what it says, and that nothing in a config is markup."""

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from diffusers_erase.eraser.card import MEASURED, MOST, as_text, model_card
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
from diffusers_erase.storage.hub import tag_of


CAR = ErasedConcept("car", synonyms=("automobile",), target="truck")
CONFIG = EraserConfig((CAR,), recipe="replace", base_model="user/base")


def card(config=CONFIG, **changes):
    return model_card(replace(config, **changes), "user/erase-car")


def test_card_parses_and_holds_what_the_hub_needs():
    data = ModelCard(card()).data
    assert data.base_model == "user/base"
    assert data.base_model_relation == "adapter"
    assert data.library_name == "diffusers"
    assert {"lora", "concept-erasure"} <= set(data.tags)
    assert data.erasure == {"concepts": ["car"], "recipe": "replace"}


def test_card_names_concept_target_and_the_line_to_write():
    text = card()
    assert "| car | object | automobile | truck | given |" in text
    assert 'pipe.load_erasure("user/erase-car")' in text


def test_card_keeps_kinds_and_synonyms_of_all_concepts_apart():
    paris = ErasedConcept("Paris, Texas", "style", ("Wenders", "the film"))
    text = card(concepts=(CAR, paris))
    assert "erases “car and Paris, Texas”" in text
    assert "| car | object | automobile | truck | given |" in text
    assert "| Paris, Texas | style | Wenders, the film | the same prompt without it |" in text


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("user/base", 'DiffusionPipeline.from_pretrained("user/base")'),
        ("diffusers_erase.playground", "pipe = load_pipeline()"),
        ("/home/me/model", 'DiffusionPipeline.from_pretrained("...")'),
        ('x"); import os; ("', 'DiffusionPipeline.from_pretrained("...")'),
    ],
)
def test_snippet_opens_the_base_model(base, line):
    text = card(base_model=base)
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(snippet, "snippet", "exec")
    assert line in snippet
    assert ("base_model: user/base" in text) == (base == "user/base")


@pytest.mark.parametrize("name", ['a"); import os; ("', "a`b", "```", "café"])
def test_snippet_loads_a_repository_of_any_name(name):
    text = model_card(CONFIG, name)
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    calls = []
    loaded = type("pipe", (), {"load_erasure": calls.append})
    exec(compile(snippet.splitlines()[-1], "snippet", "exec"), {"pipe": loaded})
    assert calls == [name]


def test_results_that_are_not_measured_are_not_claimed():
    assert card().count("| not measured | not measured | not measured | - |") == len(MEASURED)
    shares = {"base": 0.95, "erased": 0.05, "low": -0.96, "high": -0.84, "n": 64}
    measured = card(results={"target": shares, "drawn": "1 of 64"})
    assert "| 95.0 % | 5.0 % | -90.0 % (-96.0 % .. -84.0 %) | 64 |" in measured
    assert measured.count("not measured | not measured") == len(MEASURED) - 1
    assert "| drawn | 1 of 64 |" in measured
    assert ModelCard(measured).data.eval_results[0].metric_value == 0.05


@pytest.mark.parametrize(
    ("best", "shown"),
    [
        ("lowest", "a (1), b (2), c (3), d (4), e (5), f (6); the lowest is the best"),
        ("highest", "h (8), g (7), f (6), e (5), d (4), c (3); the highest is the best"),
        (None, "h (8), g (7), f (6), e (5), d (4), c (3) |"),
    ],
)
def test_card_shows_the_best_candidates_of_a_choice(best, shown):
    scores = {word: float(k + 1) for k, word in reversed([*enumerate("abcdefgh")])}
    chosen = ErasedConcept("car", target="b", choice="trial", scores=scores, best=best)
    assert f"| car | object |  | b | trial: {shown}" in card(concepts=(chosen,))


MARKUP = [
    '<img src=x onerror="alert(1)">',
    "![picture](https://example.com/x.png)",
    "[click](javascript:alert(1))",
    "a|b|c",
    "`code`",
    "**bold** _italic_ ~~gone~~",
    "$$x$$",
    "# Title\n# Title",
    "&lt;b&gt; &amp; \\*",
    "</table><script>alert(1)</script>",
    "\x1b[2J\u202ecar\x00",
]


@pytest.mark.parametrize("text", MARKUP)
def test_no_text_of_a_config_is_markup(text):
    concept = ErasedConcept(text, synonyms=(text,), target=text, choice=text, scores={text: 1.0})
    config = EraserConfig(
        (concept,),
        recipe=text,
        base_model=text,
        parameters={text: text},
        fingerprint={text: text},
        versions={text: text},
        results={text: text, "x" + text: {"base": 0, "erased": 0, "n": 1}},
    )
    page = model_card(config, text)
    body = page.split("\n---\n", 1)[1]
    plain = model_card(
        EraserConfig(
            (ErasedConcept("c", synonyms=("c",), target="c", choice="c", scores={"c": 1.0}),),
            recipe="c",
            base_model="c",
            parameters={"c": "c"},
            fingerprint={"c": "c"},
            versions={"c": "c"},
            results={"c": "c", "xc": {"base": 0, "erased": 0, "n": 1}},
        ),
        "c",
    )
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

    def structure(markdown):
        return [
            [token.type, *(child.type for child in token.children or ())]
            for token in parser.parse(markdown)
        ]

    assert structure(body) == structure(plain.split("\n---\n", 1)[1])
    assert ModelCard(page).data.erasure["concepts"] == [text]


@pytest.mark.parametrize("text", [text for text in MARKUP if text.isprintable()])
def test_as_text_is_rendered_as_the_text_itself(text):
    (inline,) = [t for t in MarkdownIt().parse(as_text(text)) if t.type == "inline"]
    assert "".join(child.content for child in inline.children) == text


def test_card_of_many_concepts_and_long_text_stays_short():
    many = tuple(ErasedConcept(f"c{k}", synonyms=("x" * 900,) * 99) for k in range(MOST + 7))
    text = card(concepts=many, parameters={str(k): "y" * 9_000 for k in range(999)})
    assert "and 7 more." in text
    assert len(text) < 500_000


def test_pictures_and_lines_about_usage_are_shown():
    usage = ["`erase-car.safetensors` is for others."]
    text = model_card(CONFIG, "user/erase-car", {"images/00.png": "a car"}, usage)
    assert "<Gallery />" in text
    assert "\n`erase-car.safetensors` is for others.\n" in text
    assert ModelCard(text).data.widget == [{"text": "a car", "output": {"url": "images/00.png"}}]
    assert "Gallery" not in card()


def test_every_concept_has_one_tag_to_be_found_by():
    assert tag_of("Van Gogh") == tag_of("van gogh") == "erases-van-gogh"
    names = ("Van Gogh", "Paul Cézanne", "Paris, Texas")
    tags = ModelCard(card(concepts=tuple(map(ErasedConcept, names)))).data.tags
    assert [tag for tag in tags if tag.startswith("erases-")] == [
        "erases-van-gogh",
        "erases-paul-cézanne",
        "erases-paris-texas",
    ]
