"""Plain mappings in, Markdown out: the model card of an eraser."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from diffusers_erase.models.architectures import architecture_or_default
from diffusers_erase.storage.hub import tag_of


MEASURED = {
    "target": "the concept, by name",
    "synonyms": "the concept, by synonyms",
    "neighbours": "its nearest neighbours",
    "others": "other concepts",
    "null": "no prompt",
    "attacks": "the concept, under attack",
}
"""What a card tells of, measured or not: pictures in which that which was asked for is seen."""

NUMBERS = {
    "harmonic_mean": "harmonic mean of what is gone, gone in other words, and kept (EraseBench)",
    "drift_null": "relative squared change of the score of the empty prompt",
    "drift_keep": "relative squared change of the scores of what is kept",
    "drift_target": "relative squared change of the scores of the concept",
    "drift_cos": "cosine of its guidance with the base's, for the concept",
}
"""Results that are no share of pictures, in words."""


def model_card(
    config: Mapping[str, Any],
    repo_id: str,
    images: Mapping[str, str] | None = None,
    files: Sequence[str] = (),
) -> str:
    """The README of an eraser's repository.

    Args:
        config: the content of `erasure_config.json`.
        repo_id: what the repository is called.
        images: path in the repository -> prompt.
        files: what else there is in it.
    """
    concept = _line(", ".join([config["concept"], *config["synonyms"]]))
    return f"""---
{_front_matter(config, repo_id, images or {})}
---

# {_line(repo_id)}: erases “{_line(config["concept"])}”
{_gallery(images or {})}
```python
import diffusers_erase
{_opening(config["base_model"])}
pipe.load_erasure("{_line(repo_id)}")
```

{_also(config, _line(repo_id), files)}

## What it does

{_table(_story(config, concept))}

{_choices(config)}## How it was made

{_table({str(k): v for k, v in config["parameters"].items() if k != "choices"})}

## Measured

{_measured(config.get("results") or {})}

## Limits

An eraser makes a model not draw something when it is asked for. Whoever holds the weights can
unload it, and erased concepts can be brought back by attacks on the prompt, the text states or the
weights; no claim of robustness is made. What was not measured above is not known. Hosts who must
not hand the concept out put the erasure into the weights (`pipe.export_erased(folder)`) and watch
what is drawn besides. The base model's licence and terms of use hold for what is drawn with it.
"""


def _front_matter(config: Mapping[str, Any], repo_id: str, images: Mapping[str, str]) -> str:
    base = config["base_model"]
    published = _published(base)
    names = config["concept"].split(", ")
    row = architecture_or_default(str(config["fingerprint"].get("denoiser")))
    family = row.families.get(config["fingerprint"].get("text_width"))
    results = _eval_results(config.get("results") or {})
    header = ModelCardData(
        base_model=base if published else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[
            *(
                "lora",
                "text-to-image",
                *(family.tags if family else ()),
                "concept-erasure",
                "diffusers-erase",
            ),
            *(tag_of(name) for name in names[:20]),
        ],
        base_model_relation="adapter" if published else None,
        widget=[{"text": text, "output": {"url": path}} for path, text in images.items()] or None,
        erasure={"concept": names, "target": config["target"], "recipe": config["recipe"]},
        model_name=repo_id if results else None,
        eval_results=results or None,
    )
    return str(header.to_yaml())


def _published(base: str) -> bool:
    """Whether that is a model's name on the Hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base) is not None


def _opening(base: str) -> str:
    """The lines that open the base model."""
    if base == "diffusers_erase.playground":
        return "from diffusers_erase.playground import load_pipeline\n\npipe = load_pipeline()"
    name = base if _published(base) else "..."
    return (
        "from diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{name}")'
    )


def _gallery(images: Mapping[str, str]) -> str:
    return "\n<Gallery />\n" if images else ""


def _also(config: Mapping[str, Any], repo_id: str, files: Sequence[str]) -> str:
    if "lora" not in config.get("payloads", ("lora",)):
        return "It is a map of the text, for every model with the same text encoder."
    said = (
        f'It is an ordinary LoRA too: `pipe.load_lora_weights("{repo_id}")` works without '
        "`diffusers_erase`,\nbut is then switched off by the next adapter that is loaded."
    )
    plain = ("pytorch_lora_weights.safetensors", "text_map.safetensors")
    others = [name for name in files if name.endswith(".safetensors") and name not in plain]
    for name in others:
        said += f"\n`{_line(name)}` is the same with the keys that ComfyUI and A1111 read."
    return said


def _story(config: Mapping[str, Any], concept: str) -> dict[str, Any]:
    return {
        "erased concept": concept,
        "kind": config["kind"],
        "answered as": config["target"] or "the same prompt without the concept",
        "recipe": config["recipe"],
        "base model": config["base_model"] or "not recorded",
        "made for": ", ".join(f"{k} {v}" for k, v in config["fingerprint"].items()),
        "rank": config["rank"],
        "versions": ", ".join(f"{k} {v}" for k, v in config["versions"].items()),
    }


def _choices(config: Mapping[str, Any]) -> str:
    """How the targets were chosen, and the rivals that came next."""
    told = []
    choices = config["parameters"].get("choices")
    for choice in choices if isinstance(choices, list) else ():
        scores = choice.get("scores") if isinstance(choice, Mapping) else None
        if not isinstance(scores, Mapping) or len(scores) < 2:
            continue
        rivals = ", ".join(f"{_line(k)} ({_number(v)})" for k, v in [*scores.items()][:6])
        told.append(
            f"The target of “{_line(choice.get('concept'))}” was chosen by "
            f"{_line(choice.get('how'))}; scores: {rivals}.\n\n"
        )
    return "".join(told)


def _measured(results: Mapping[str, Any]) -> str:
    lines = [
        "Pictures in which what was asked for is seen:",
        "",
        "| asked for | base | erased | difference (95 % interval) | n |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    rows = {key: value for key, value in results.items() if _is_row(value)}
    for key in [*MEASURED, *(key for key in rows if key not in MEASURED)]:
        lines.append(f"| {_line(MEASURED.get(key, key))} | {_cells(rows.get(key))} |")
    rest = {NUMBERS.get(k, k): value for k, value in results.items() if k not in rows}
    return "\n".join(lines) + (f"\n\n{_table(rest)}" if rest else "")


def _cells(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not measured | not measured | not measured | -"
    known = {"low", "high"} <= row.keys()
    between = f" ({_share(row['low'], '+')} .. {_share(row['high'], '+')})" if known else ""
    change = _share(row["erased"] - row["base"], "+")
    return f"{_share(row['base'])} | {_share(row['erased'])} | {change}{between} | {row['n']}"


def _is_row(value: Any) -> bool:
    """Whether a result is the share of pictures of base and eraser, out of n."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(value.get(key), int | float) for key in ("base", "erased", "n"))
        and all(isinstance(value.get(key, 0.0), int | float) for key in ("low", "high"))
    )


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
        if _is_row(row) and math.isfinite(row["erased"])
    ]


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {_line(name)} | {_line(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _share(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} %"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else _line(value)


def _line(value: Any) -> str:
    """Text that stays in its line and cell, and is text and no markup."""
    text = re.sub(r"\s+", " ", str(value))
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
