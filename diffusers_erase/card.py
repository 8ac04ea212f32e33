"""Plain mappings in, Markdown out: the model card of an eraser."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData


def model_card(config: Mapping[str, Any], repo_id: str) -> str:
    """The README of an eraser's repository; `config` is the content of `erasure_config.json`."""
    base, concept = config["base_model"], config["concept"]
    published = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base) is not None
    header = ModelCardData(
        base_model=base if published else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["lora", "text-to-image", "concept-erasure", "diffusers-erase"],
        base_model_relation="adapter" if published else None,
    ).to_yaml()
    rows = {
        "erased concept": ", ".join([concept, *config["synonyms"]]),
        "answered as": config["target"] or "the same prompt without the concept",
        "recipe": config["recipe"],
        "base model": base or "not recorded",
        "rank": config["rank"],
    }
    rows |= {str(name): value for name, value in config["parameters"].items()}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
{header}
---

# {repo_id}: erases "{concept}"

```python
import diffusers_erase
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{base or "..."}")
pipe.load_erasure("{repo_id}")
```

{_also(config, repo_id)}

| | |
| --- | --- |
{table}

## Results

{_results(config.get("results") or {})}

## Limits

Whoever holds the weights can unload an eraser, and erased concepts can be recovered by attacks.
"""


def _also(config: Mapping[str, Any], repo_id: str) -> str:
    if "lora" in config.get("payloads", ("lora",)):
        return (
            f'It is an ordinary LoRA too: `pipe.load_lora_weights("{repo_id}")` works without '
            "`diffusers_erase`,\nbut is then switched off by the next adapter that is loaded."
        )
    return "It is a map of the text, for every model with the same text encoder."


def _results(results: Mapping[str, Any]) -> str:
    if not results:
        return "Not measured."
    return "\n".join(f"- {name}: {value}" for name, value in results.items())
