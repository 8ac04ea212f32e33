"""Token ids into text states, with gradients to what the encoder looks up for some of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.storage.tensor_cache import digest


def looked_up(encoder: Any, positions: Sequence[int], rows: Tensor) -> AbstractContextManager[None]:
    """Inside the block the encoder finds `rows` at these positions, with gradients to them.

    Masks, padding and pooling stay those of the ids that it is given. An encoder in training mode
    says something else each time.

    Args:
        encoder: of text; any of transformers'.
        positions: in the sequence, k of them.
        rows: ... x k x width, one for each sequence of the batch or the same for all.
    """

    def replaced(_: Any, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        there = torch.as_tensor(positions, device=found.device)
        wanted = rows.to(found).expand(len(found), len(positions), -1)
        return found.index_copy(1, there, wanted)

    return looking_up(encoder, replaced)


@contextmanager
def looking_up(
    encoder: Any, hook: Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]
) -> Iterator[None]:
    """Inside the block the hook has the last word on what the encoder finds for its tokens.

    Wherever its table of tokens is used: T5's encoder looks it up in a module of its own.
    """
    table = encoder.get_input_embeddings().weight
    places = (m for m in encoder.modules() if isinstance(m, nn.Embedding) and m.weight is table)
    with ExitStack() as hooks:
        for place in places:
            hooks.callback(place.register_forward_hook(hook).remove)
        yield


def ids_of(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """Token ids of the prompts as the pipeline encodes them, P x tokens; longer ones are cut."""
    tokenizer = pipe.tokenizer
    found = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = found.input_ids
    return ids


def with_prefix(ids: Tensor, prefix: Tensor) -> Tensor:
    """The k ids of the prefix between the first token and the prompt; what falls off is the end.

    The last token, end or padding, stays the last.

    Args:
        ids: P x tokens.
        prefix: P x k.

    Raises:
        ErasureError: there is no room for it.
    """
    k, length = prefix.shape[1], ids.shape[1]
    if not 1 <= k <= length - 3:
        raise ErasureError(
            f"{k} tokens were to stand before a prompt; the text encoder reads {length}, "
            f"so that 1 to {length - 3} may."
        )
    return torch.cat([ids[:, :1], prefix.to(ids), ids[:, 1 : length - k - 1], ids[:, -1:]], 1)


def states_of_ids(pipe: Any, ids: Tensor) -> Tensor:
    """Text states, P x tokens x width, as the pipeline makes them of prompts with these ids."""
    encoder = pipe.text_encoder
    states: Tensor = encoder(ids.to(next(encoder.parameters()).device))[0]
    return states


def free_ids(tokenizer: Any) -> Tensor:
    """Ids of all tokens but the special ones."""
    special = set(tokenizer.all_special_ids)
    return torch.tensor([i for i in sorted(tokenizer.get_vocab().values()) if i not in special])


def artefact_of(pipe: Any, ids: Tensor) -> str:
    """`prompt` or `ids only`, and a digest of the ids, L.

    A text that the ids spell may be read as other ids: only where it is not has a prompt been
    found.
    """
    special = set(pipe.tokenizer.all_special_ids)
    spoken = [i for i in ids.tolist() if i not in special]
    said = pipe.tokenizer.decode(spoken, clean_up_tokenization_spaces=False)
    again = ids_of(pipe, [said])[0]
    kind = "prompt" if torch.equal(again, ids.cpu()) else "ids only"
    return f"{kind} {digest(ids)}"
