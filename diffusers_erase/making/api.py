"""erase(): one call from a pipeline and a word to an eraser."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers_erase.concepts import Vocabulary
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.probe import probe
from diffusers_erase.making.by_algebra import solved
from diffusers_erase.making.by_training import trained
from diffusers_erase.making.choosing import chosen
from diffusers_erase.making.request import (
    Erased,
    Request,
    concepts_of,
    prompts_of,
    recipe_of,
    vocabulary_of,
)
from diffusers_erase.models.model import Model
from diffusers_erase.training.recipes import Recipe
from diffusers_erase.training.targets import Fixed, Target, as_target
from diffusers_erase.training.trainer import Step


def erase(
    pipe: Any,
    concept: Erased,
    *,
    target: str | tuple[str | None, ...] | Target | None = None,
    vocabulary: Sequence[str] | Vocabulary | None = None,
    keep: Sequence[str] = (),
    protect: Sequence[str] = (),
    recipe: str | Recipe | Edit | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    work: str | Path | None = None,
    accelerator: Any = None,
    callback_on_step_end: Callable[[Step], None] | None = None,
) -> EraserAdapter:
    """Make an eraser, after which the concept is answered as its target; leaves the pipeline alone.

    Args:
        pipe: a Stable Diffusion pipeline without other adapters or erasures. For an `Edit` its text
            encoders are enough: without a UNet the eraser is portable.
        concept: its name, or a `Concept` with synonyms, kind and prompts of its own; several for
            one eraser of them all.
        target: what to draw instead, in the concept's place (one for all concepts, or a tuple with
            one for each), or a way to choose it such as `Nearest(vocabulary)`. Left out, the recipe
            chooses from the vocabulary, or takes the same prompt without the concept. A near
            neighbour costs the others least.
        vocabulary: other concepts: candidates for the target, and what is to be preserved.
        keep: prompts whose pictures must stay as they are; in training each costs sampling time.
        protect: prompts that must not change at all, exactly, as long as their words are all there
            is; each takes freedom from the eraser. Works where only keys and values are trained.
        recipe: a name from `RECIPES`, which are trained, or from `EDITS`, which are solved; or a
            `Recipe` or `Edit` with parts and numbers of your own. Left out: `surgical-age` where a
            vocabulary is given and the model can be trained, else `closed-form`; says why.
        steps: training steps, if not the recipe's.
        seed: of trajectories, weights and minibatches; the same seed gives the same eraser on the
            same machine.
        progress: whether to show a progress bar; this and what follows is for training, but `work`,
            which keeps statistics of long lists of prompts too.
        work: a folder for trajectories and checkpoints; a run that was stopped goes on from there.
        accelerator: accelerate's `Accelerator`, for its precision, processes and trackers.
        callback_on_step_end: called after every step, when the pipeline wears the eraser as it is
            so far: a picture drawn there shows how far it has come.

    Raises:
        ErasureError: an empty concept, an unknown recipe, a pipeline of another kind, or one that
            wears adapters or erasures; whatever is wrong is said before anything is computed.
    """
    model = Model.of(pipe)
    words, goal = vocabulary_of(vocabulary), None if target is None else as_target(target)
    if isinstance(recipe, str):
        recipe = recipe_of(recipe)
    elif recipe is None:
        way = None if isinstance(goal, Fixed) else goal
        training = any(x is not None for x in (way, steps, accelerator, callback_on_step_end))
        recipe = chosen(model, words, training=training, say=progress)
    request = Request(
        concepts=concepts_of(concept),
        recipe=recipe,
        vocabulary=words,
        target=goal,
        keep=prompts_of("keep", keep),
        protect=prompts_of("protect", protect),
        seed=seed,
    )
    folder = Path(work) if work else None
    if isinstance(recipe, Edit):
        if steps is not None:
            raise ErasureError(f"'{recipe.name}' is solved and has no steps; leave `steps` out.")
        eraser = solved(model, request, cache=folder / "cache" if folder else None)
        return _probed(model, request, eraser)
    if steps is not None:
        request = replace(request, recipe=replace(recipe, steps=steps))
    eraser = trained(
        model,
        request,
        progress=progress,
        work=folder,
        accelerator=accelerator,
        callback_on_step_end=callback_on_step_end,
    )
    return _probed(model, request, eraser)


def _probed(model: Model, request: Request, eraser: EraserAdapter) -> EraserAdapter:
    """The eraser with what `probe` gets back of it among its results, for its card."""
    if not eraser.factors:  # there are no weights to probe
        return eraser
    prompts = [p.text for concept in request.concepts for p in concept.example_prompts(8)]
    found = probe(model, eraser, prompts)
    results = {
        "regained by other text states": round(found.regained, 3),
        "size of those states": round(found.size, 2),
    }
    return replace(eraser, config=replace(eraser.config, results=results))
