"""Text encoder outputs of prompts, and the words a tokenizer has a token for."""

import inspect
import re
from collections.abc import Iterator, Sequence
from copy import copy
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def encode(pipe: Any, prompts: Sequence[str], device: torch.device | None = None) -> Tensor:
    """Text states of the prompts, P x tokens x width, without gradients."""
    return text_states(pipe, prompts, device)


def text_states(pipe: Any, prompts: Sequence[str], device: torch.device | None = None) -> Tensor:
    """Text states of the prompts, P x tokens x width, from the pipeline's own `encode_prompt`.

    States of masked padding are zero. `device` is the pipeline's execution device if omitted;
    looking that up takes longer than a small text encoder.
    """
    arguments = encode_arguments(pipe, prompts, device or pipe._execution_device)
    states: Tensor
    states, *others = pipe.encode_prompt(**arguments)
    if "prompt_attention_mask" in inspect.signature(pipe.encode_prompt).parameters:
        states = states * others[0][..., None].to(states.dtype)
    return states


def ending_at(pipe: Any, length: int) -> Any:
    """A copy of the pipeline whose tokenizers end every prompt at `length` tokens.

    It shares all else with the pipeline, which is not changed.
    """
    short = copy(pipe)
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = getattr(pipe, name, None)
        if tokenizer is not None:
            cut = copy(tokenizer)
            cut.model_max_length = length
            setattr(short, name, cut)
    return short


def encode_arguments(
    pipe: Any, prompts: Sequence[str], device: torch.device | None = None
) -> dict[str, Any]:
    """Arguments of the pipeline's `encode_prompt` for one state of each prompt, unguided."""
    options = {
        "device": device,
        "num_images_per_prompt": 1,
        "num_videos_per_prompt": 1,
        "do_classifier_free_guidance": False,
        "prompt_2": None,
        "prompt_3": None,
    }
    takes = inspect.signature(pipe.encode_prompt).parameters
    return {"prompt": list(prompts), **{k: v for k, v in options.items() if k in takes}}


def whole_words(tokenizer: Any) -> Iterator[str]:
    """The words a tokenizer has a token for, the most frequent first.

    Token ids are ordered by frequency in the texts the tokenizer was fitted to. CLIP marks the end
    of a word, other tokenizers its beginning.
    """
    ids = tokenizer.get_vocab()
    marked = re.compile(r"(?:(.+)</w>|[▁Ġ](.+))")
    found = map(marked.fullmatch, sorted(ids, key=ids.__getitem__))
    return (match[1] or match[2] for match in found if match)


def unknown_words(tokenizer: Any, phrase: str) -> dict[str, list[str]]:
    """Words of the phrase that the tokenizer splits into short fragments -> similar known words.

    A text encoder does not understand a word split into fragments of about two letters; erasing
    such a word erases nothing.
    """
    pieces = {word: tokenizer.tokenize(word) for word in phrase.lower().split()}
    unknown = [w for w, each in pieces.items() if len(each) > 1 and len(w) < 2.5 * len(each)]
    known = [word for word in whole_words(tokenizer) if len(word) > 2] if unknown else []
    return {word: get_close_matches(word, known, n=3) for word in unknown}
