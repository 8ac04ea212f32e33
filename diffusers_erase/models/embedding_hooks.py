"""Hooks on a text encoder's token embeddings, and text states of token ids."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.model import Model, Pipeline
from diffusers_erase.models.text_states import whole_words
from diffusers_erase.storage.tensor_cache import digest


def embeddings_at(
    encoder: Any, positions: Sequence[int], rows: Tensor
) -> AbstractContextManager[None]:
    """Context manager: the token embeddings at these positions are `rows`, with gradients.

    Masks, padding and pooling remain those of the token ids. For k positions in the sequence `rows`
    is ... x k x width, one for each sequence of the batch or the same for all.
    """

    def replace(_: Any, ids: tuple[Tensor, ...], embeddings: Tensor) -> Tensor:
        index = torch.as_tensor(positions, device=embeddings.device)
        wanted = rows.to(embeddings).expand(len(embeddings), len(positions), -1)
        return embeddings.index_copy(1, index, wanted)

    return embedding_hook(encoder, replace)


@contextmanager
def embedding_hook(
    encoder: Any, hook: Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]
) -> Iterator[None]:
    """Context manager: a hook replaces token embeddings after all other hooks.

    It is registered with every module that has the embedding table as its weight: T5's encoder uses
    another module than `get_input_embeddings` returns.
    """
    table = encoder.get_input_embeddings().weight
    modules = (m for m in encoder.modules() if isinstance(m, nn.Embedding) and m.weight is table)
    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(hook).remove)
        yield


def token_ids(pipe: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Token ids of the prompts as the pipeline encodes them, P x tokens; longer ones are cut."""
    ids: Tensor = pipe.tokenizer(
        list(prompts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def with_prefix(ids: Tensor, prefix: Tensor) -> Tensor:
    """The token ids (P x tokens) with a prefix (P x k) between the first one and the prompt.

    The prompt's end is cut off; the last token, end or padding, stays the last.

    Raises:
        ErasureError: k does not fit.
    """
    k, length = prefix.shape[1], ids.shape[1]
    if not 1 <= k <= length - 3:
        raise ErasureError(
            f"A prefix of {k} tokens does not fit: the text encoder reads {length} tokens, so it "
            f"may have 1 to {length - 3}."
        )
    return torch.cat([ids[:, :1], prefix.to(ids), ids[:, 1 : length - k - 1], ids[:, -1:]], 1)


def states_of_ids(pipe: Pipeline, ids: Tensor) -> Tensor:
    """Text states of token ids, P x tokens x width, as the pipeline makes them of prompts."""
    encoder = pipe.text_encoder
    states: Tensor = encoder(ids.to(next(encoder.parameters()).device))[0]
    return states


def ordinary_ids(tokenizer: Any) -> Tensor:
    """Ids of all tokens but the special ones."""
    special = set(tokenizer.all_special_ids)
    return torch.tensor([i for i in sorted(tokenizer.get_vocab().values()) if i not in special])


def describe_ids(pipe: Pipeline, ids: Tensor) -> str:
    """`prompt` or `ids only`, and the digest of the token ids, L.

    Only if the text that the ids decode to has the same ids is it a prompt with these text states.
    """
    special = set(pipe.tokenizer.all_special_ids)
    ordinary = [i for i in ids.tolist() if i not in special]
    text = pipe.tokenizer.decode(ordinary, clean_up_tokenization_spaces=False)
    kind = "prompt" if torch.equal(token_ids(pipe, [text])[0], ids.cpu()) else "ids only"
    return f"{kind} {digest(ids)}"


def token_embeddings(
    encoder: Any, tokens: Sequence[int], vectors: Tensor
) -> AbstractContextManager[None]:
    """Context manager: the text encoder embeds these k tokens as `vectors`, with gradients.

    The vectors are k x width, or P x k x width for those of each prompt.
    """

    def replace_embeddings(_: Any, ids: tuple[Tensor, ...], embeddings: Tensor) -> Tensor:
        for i, token in enumerate(tokens):
            vector = vectors[..., i : i + 1, :].to(embeddings)
            embeddings = torch.where((ids[0] == token)[..., None], vector, embeddings)
        return embeddings

    return embedding_hook(encoder, replace_embeddings)


def word_states(
    pipe: Pipeline, templates: Sequence[str], vectors: Tensor, placeholder: tuple[str, list[int]]
) -> Tensor:
    """Text states of the templates with words of these token embeddings for `{}`."""
    words, tokens = placeholder
    with token_embeddings(pipe.text_encoder, tokens, vectors):
        return Model.of(pipe).states([template.replace("{}", words) for template in templates])


def placeholder_words(
    tokenizer: Any, templates: Sequence[str], count: int = 1
) -> tuple[str, list[int]]:
    """So many words of one token each that are in no template, as a text, and their tokens' ids."""
    used = {token for template in templates for token in tokenizer(template).input_ids}
    found: dict[int, str] = {}
    for word in whole_words(tokenizer):
        tokens = tokenizer(word, add_special_tokens=False).input_ids
        if word.isalpha() and len(tokens) == 1 and tokens[0] not in used:
            found.setdefault(tokens[0], word)
        if len(found) == count:
            return " ".join(found.values()), list(found)
    raise ErasureError(
        f"The tokenizer has fewer than {count} words of one token that the templates do not use."
    )
