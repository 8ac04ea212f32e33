"""The model card of an eraser: its config as Markdown."""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
from diffusers_erase.errors import shown
from diffusers_erase.models.architectures import architecture_or_default
from diffusers_erase.storage.hub import is_hub_id, tag_of


MEASURED = {
    "target": "the concept, by name",
    "synonyms": "the concept, by synonyms",
    "neighbours": "its nearest neighbours",
    "others": "other concepts",
    "null": "no prompt",
    "attacks": "the concept, under attack",
}
"""Row of the card -> its prompts; each is the share of pictures that show what was asked for."""

NUMBERS = {
    "harmonic_mean": "harmonic mean of what is gone, gone in other words, and kept (EraseBench)",
    "drift_null": "relative squared change of the score of the empty prompt",
    "drift_keep": "relative squared change of the scores of what is kept",
    "drift_target": "relative squared change of the scores of the concept",
    "drift_cos": "cosine of its guidance with the base's, for the concept",
}
"""Results that are not shares of pictures -> their description."""

CHECKED = {
    "verdict": "verdict",
    "concepts": "verdict by concept",
    "evidence": "mean evidence that its pictures show the concept (base: about 2)",
    "left": "share of few pictures that may still show it",
    "mistaken": "drawn as another erased concept",
    "general": "may be words for many things, still drawn by their own names",
    "harms": "relative squared change of the guidance of near words",
    "layout kept": "correlation of erased and base latents from the same noise",
    "tries": "tries",
    "reason": "not checked, because",
}
"""Entry of the check after making (`making.checking`) -> its description."""

MOST = 100
"""Concepts, and rows of a table, that a card shows at most."""


def model_card(
    config: EraserConfig,
    repo_id: str,
    images: Mapping[str, str] | None = None,
    usage: Sequence[str] = (),
) -> str:
    """The README of an eraser's repository; `as_text` escapes every value of the config.

    `images` is path in the repository -> prompt, `usage` lines of Markdown on the use of the files.
    """
    results = config.results
    rows = {key: row for key, row in results.items() if _is_row(row)}
    names = [*MEASURED, *(key for key in rows if key not in MEASURED)]
    return _TEMPLATE.render(
        config=config,
        repo_id=repo_id,
        images=images,
        most=MOST,
        front_matter=Markup(_front_matter(config, repo_id, images or {})),
        opening=Markup(_opening(config.base_model)),
        usage=[Markup(line) for line in usage],
        choice=_choice,
        model={
            "recipe": config.recipe,
            "base model": config.base_model or "not recorded",
            "made for": ", ".join(
                f"{k} {v}" for k, v in config.fingerprint.items() if not isinstance(v, Mapping)
            ),
            "rank": config.rank,
            "versions": ", ".join(f"{k} {v}" for k, v in config.versions.items()),
        },
        shares={MEASURED.get(key, key): _cells(rows.get(key)) for key in names},
        checked=_checked(results.get("check")),
        numbers={
            NUMBERS.get(key, key): x
            for key, x in results.items()
            if key not in rows and key != "check"
        },
    )


def as_text(value: Any) -> Markup:
    """The value in one line that Markdown and HTML render as the characters it consists of."""
    if isinstance(value, Markup):
        return value
    text = html.escape(shown(value, 2_000), quote=False)
    return Markup(re.sub(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))", r"\\\1", text))


def literal(text: str) -> Markup:
    """The text as a Python literal within a code span or block."""
    return Markup(json.dumps(text, ensure_ascii=not text.isprintable()).replace("`", "\\u0060"))


_ENVIRONMENT = Environment(
    loader=PackageLoader("diffusers_erase", "eraser"),
    autoescape=True,
    finalize=as_text,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.filters["literal"] = literal
_TEMPLATE = _ENVIRONMENT.get_template("card.md.jinja")


def _front_matter(config: EraserConfig, repo_id: str, images: Mapping[str, str]) -> str:
    base = config.base_model
    published = is_hub_id(base)
    names = [concept.name for concept in config.concepts[:MOST]]
    row = architecture_or_default(str(config.fingerprint.get("denoiser")))
    family = row.families.get(config.fingerprint.get("text_width") or 0)
    tags = ["lora", "text-to-image", *(family.tags if family else ())]
    results = _eval_results(config.results)
    header = ModelCardData(
        base_model=base if published else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*tags, "concept-erasure", "diffusers-erase", *map(tag_of, names[:20])],
        base_model_relation="adapter" if published else None,
        widget=[{"text": text, "output": {"url": path}} for path, text in images.items()] or None,
        erasure={"concepts": names, "recipe": config.recipe},
        model_name=repo_id if results else None,
        eval_results=results or None,
    )
    return str(header.to_yaml())


def _opening(base: str) -> str:
    """The lines that open the base model."""
    if base == "diffusers_erase.playground":
        return "from diffusers_erase.playground import load_pipeline\n\npipe = load_pipeline()"
    name = base if is_hub_id(base) else "..."
    return (
        "from diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{name}")'
    )


def _choice(concept: ErasedConcept) -> str:
    """How the target was chosen, with the best candidates and their scores."""
    scores = ", ".join(f"{word} ({score:.3g})" for word, score in concept.ranked[:6])
    better = f"; the {concept.best} is the best" if concept.best and scores else ""
    return concept.choice + (f": {scores}{better}" if scores else "")


def _checked(check: Any) -> dict[str, str]:
    """The check after making, in words; empty if there was none."""
    if not isinstance(check, Mapping):
        return {}
    return {CHECKED.get(key, str(key)): _in_words(x) for key, x in check.items() if x}


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_in_words(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_in_words, value))
    return "none" if value is None else str(value)


def _cells(row: Mapping[str, Any] | None) -> tuple[str, ...]:
    if row is None:
        return (*["not measured"] * 3, "-")
    known = {"low", "high"} <= row.keys()
    between = f" ({_share(row['low'], '+')} .. {_share(row['high'], '+')})" if known else ""
    change = _share(row["erased"] - row["base"], "+")
    return _share(row["base"]), _share(row["erased"]), f"{change}{between}", str(row["n"])


def _is_row(value: Any) -> bool:
    """Whether a result is the share of pictures of base and eraser, out of n."""
    if not isinstance(value, Mapping):
        return False
    numbers = [value.get("base"), value.get("erased"), value.get("n")]
    numbers += [value.get("low", 0.0), value.get("high", 0.0)]
    return all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)


def _eval_results(results: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type=f"diffusers-erase-{tag_of(key)[len('erases-') :]}",
            dataset_name=MEASURED.get(key, key),
            metric_type="accuracy",
            metric_name=f"seen with the eraser, of {row['n']} (base: {_share(row['base'])})",
            metric_value=round(float(row["erased"]), 4),
        )
        for key, row in results.items()
        if _is_row(row)
    ]


def _share(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} %"
