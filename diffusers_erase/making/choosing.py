"""The recipe for somebody who names none, and why it is that one."""

import sys

from tqdm.auto import tqdm

from diffusers_erase.concepts import Vocabulary
from diffusers_erase.editing.recipes import CLOSED_FORM, Edit
from diffusers_erase.models.model import Model
from diffusers_erase.training.recipes import Recipe, default_recipe


def chosen(
    model: Model, vocabulary: Vocabulary | None, *, training: bool, say: bool = False
) -> Recipe | Edit:
    """Trained where a vocabulary says what must survive and the model can be trained, else solved.

    Args:
        model: the base.
        vocabulary: other concepts, if somebody listed them.
        training: whether something was asked for that only training has.
        say: whether to tell which recipe it is, and why.
    """
    trained, reason = default_recipe(vocabulary), model.untrainable
    recipe: Recipe | Edit = CLOSED_FORM
    if training:
        recipe, why = trained, "what was asked for is a matter of training"
    elif reason:
        why = f"{reason}; this one needs the text encoders alone"
    elif vocabulary is None:
        why = (
            "without a vocabulary there is nothing to train preservation on; this one spares the "
            "tokenizer's own words"
        )
    else:
        recipe = trained
        why = "the vocabulary says what must survive, and training hurts its nearest words least"
    if say:
        tqdm.write(f"recipe {recipe.name}: {why}.", file=sys.stderr)
    return recipe
