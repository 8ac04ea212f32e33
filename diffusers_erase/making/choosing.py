"""The recipe that `erase()` takes if none is named."""

import sys
from collections.abc import Sequence

from tqdm.auto import tqdm

from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.editing.recipes import CLOSED_FORM, Edit
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.model import Model
from diffusers_erase.training.recipes import SURGICAL_REMOVE, Recipe, default_recipe


def robust_recipe(vocabulary: Vocabulary | None, concepts: Sequence[Concept]) -> Recipe:
    """The recipe that faces learnt words.

    Raises:
        ErasureError: there is no vocabulary of other concepts to preserve.
    """
    if vocabulary is None or not vocabulary.others(concepts):
        raise ErasureError(
            "`robust=True` changes all parts of every attention, so it needs a `vocabulary` of "
            "other concepts to preserve; pass one, or leave `robust` out."
        )
    return SURGICAL_REMOVE


def choose_recipe(
    model: Model, vocabulary: Vocabulary | None, *, training: bool, verbose: bool = False
) -> Recipe | Edit:
    """A trained recipe if there is a vocabulary and the model can be trained, else a solved one.

    A trained one also if an argument was given that only training uses (`training`). With `verbose`
    the recipe and the reason are printed to stderr.
    """
    trained, reason = default_recipe(model, vocabulary), model.untrainable
    recipe: Recipe | Edit = CLOSED_FORM
    if training:
        recipe, why = trained, "arguments were given that only training uses"
    elif reason:
        why = f"{reason}; this one needs only the text encoders"
    elif vocabulary is None:
        why = (
            "without a vocabulary training would preserve nothing; this one keeps the words that "
            "the tokenizer knows"
        )
    else:
        recipe = trained
        why = "the vocabulary lists what to preserve, and training damages near words least"
    if verbose:
        tqdm.write(f"recipe {recipe.name}: {why}.", file=sys.stderr)
    return recipe
