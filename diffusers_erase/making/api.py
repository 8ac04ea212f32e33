"""`erase()` makes an eraser from a pipeline and the name of a concept."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from diffusers_erase.concepts import Kind, Vocabulary
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.probe import probe
from diffusers_erase.making.by_algebra import solve_eraser
from diffusers_erase.making.by_training import train_eraser
from diffusers_erase.making.choosing import choose_recipe, robust_recipe
from diffusers_erase.making.request import (
    ConceptLike,
    Request,
    as_concepts,
    as_recipe,
    as_strings,
    as_vocabulary,
    require_general,
)
from diffusers_erase.making.statistics import Statistics
from diffusers_erase.making.trying import make_checked
from diffusers_erase.models.model import Model
from diffusers_erase.storage.tensor_cache import TensorCache
from diffusers_erase.training.recipes import Recipe
from diffusers_erase.training.targets import Fixed, Target, as_target
from diffusers_erase.training.trainer import Step


def erase(
    pipe: Any,
    concept: ConceptLike,
    *,
    kind: Kind | None = None,
    target: str | tuple[str | None, ...] | Target | None = None,
    vocabulary: Sequence[str] | Vocabulary | None = None,
    keep: Sequence[str] = (),
    protect: Sequence[str] = (),
    recipe: str | Recipe | Edit | None = None,
    robust: bool = False,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    work: str | Path | None = None,
    prior: str | Path | None = None,
    check: bool = True,
    allow_weak: bool = False,
    accelerator: Any = None,
    callback_on_step_end: Callable[[Step], None] | None = None,
) -> EraserAdapter:
    """Make an eraser: a pipeline that loads it draws the target instead of the concept.

    The pipeline it is made from is not changed.

    Args:
        pipe: a pipeline without adapters or erasures. An `Edit` needs only its text encoders;
            without a UNet the eraser is portable.
        concept: a name, or a `Concept` with synonyms, kind and prompts; or a sequence of these, for
            one eraser of them all. Of `"in the style of X"` or `"a photo of X"` the name is X; a
            plural is erased in the singular too, if the tokenizer knows it.
        kind: of the concepts that are plain names; by default inferred from their words and the
            vocabulary's.
        target: what is drawn instead (one for all concepts, or a tuple with one for each), or a way
            to choose it, such as `Nearest(vocabulary)`. By default the recipe chooses it from the
            vocabulary, or takes the prompt without the concept. Near words damage others least.
        vocabulary: other concepts: candidates for the target, and what is preserved.
        keep: prompts whose pictures stay as they are, approximately; each costs sampling time.
        protect: prompts that do not change at all (in float32; half precision rounds what holds
            them); each leaves the eraser fewer directions. Needs a recipe that trains keys and
            values only.
        recipe: a name from `RECIPES` (trained) or `EDITS` (solved), or a `Recipe` or `Edit` with
            numbers of your own. By default `surgical-age` if a vocabulary is given and the model
            can be trained, else `closed-form`; the reason is printed.
        robust: take `surgical-remove`, which trains against learnt words; needs a vocabulary.
        steps: training steps, if not the recipe's.
        seed: of trajectories, weights and minibatches; on one machine it determines the eraser.
        progress: whether to show a progress bar, the recipe's choice and how names were understood.
        work: a folder for trajectories, checkpoints and text statistics; a stopped run continues
            from it.
        prior: statistics of this text encoder (`TextPrior`), a file, a folder or a Hub id, which
            spare recipes that are solved, or begin so, encoding some 2,000 general prompts.
        check: whether to draw a few pictures, to try a stronger recipe and other targets if they
            still show a concept, and to record it in `eraser.config.results["check"]` (see
            `Check`).
        allow_weak: whether an eraser of what is still drawn is returned, with a warning.
        accelerator: accelerate's `Accelerator`, for its precision, processes and trackers.
        callback_on_step_end: called after every training step; the pipeline then draws with the
            eraser as it is at that step.

    Raises:
        ErasureError: an empty concept, an unknown recipe, an argument that the recipe does not use,
            or a pipeline that does not fit or has adapters or erasures loaded; before any work.
        NotErasedError: a concept is still drawn; the error's `eraser` is the best that was made.
    """
    model, words = Model.of(pipe), as_vocabulary(vocabulary)
    concepts = as_concepts(concept, kind, words, tokenizer=model.tokenizer, verbose=progress)
    goal = None if target is None else as_target(target)
    training: dict[str, Any] = {
        "steps": steps,
        "accelerator": accelerator,
        "callback_on_step_end": callback_on_step_end,
    }
    given = [f"`{name}`" for name, value in training.items() if value is not None]
    if robust:
        if recipe is not None:
            raise ErasureError("`robust=True` chooses the recipe; leave out `recipe`, or `robust`.")
        recipe = robust_recipe(words, concepts)
    if recipe is None:
        trains = bool(given) or not isinstance(goal, Fixed | None)
        recipe = choose_recipe(model, words, training=trains, verbose=progress)
    recipe = _trained_for(as_recipe(recipe), steps, given)
    soft, exact = as_strings("keep", keep), as_strings("protect", protect)
    request = Request(concepts, recipe, words, goal, soft, exact, seed)
    folder = Path(work) if work else None
    trained = {**training, "progress": progress, "work": folder}
    del trained["steps"]

    say = _print if progress else _say_nothing
    statistics = cache(lambda: Statistics.of(model, folder, prior=prior, say=say))
    if prior is not None:
        require_general(request)
        statistics()

    def make(request: Request) -> EraserAdapter:
        if isinstance(request.recipe, Edit):
            return solve_eraser(model, request, statistics=statistics)
        return train_eraser(model, request, statistics=statistics, **trained)

    if check:
        made = make_checked(make, model, request, allow_weak=allow_weak, say=say)
    else:
        made = make(request)
    return _probed(model, request, made, TensorCache(folder / "cache") if folder else None)


def _trained_for(recipe: Recipe | Edit, steps: int | None, given: Sequence[str]) -> Recipe | Edit:
    """The recipe with so many steps; `given` names the arguments that only training uses."""
    if isinstance(recipe, Recipe):
        return recipe if steps is None else replace(recipe, steps=steps)
    if given:
        raise ErasureError(
            f"Recipe '{recipe.name}' is solved without training and does not use "
            f"{' and '.join(given)}; leave out {'it' if len(given) == 1 else 'them'}, or name a "
            "trained recipe."
        )
    return recipe


def _probed(
    model: Model, request: Request, eraser: EraserAdapter, cache: TensorCache | None
) -> EraserAdapter:
    """The eraser with the result of `probe` among its results, for its card."""
    if not eraser.factors:  # there are no weights to probe
        return eraser
    each = max(1, 8 // len(request.concepts))
    prompts = [p.text for concept in request.concepts for p in concept.example_prompts(each)]
    found = probe(model, eraser, prompts, cache=cache)
    results = {
        "regained by other text states": round(found.regained, 3),
        "size of those states": round(found.size, 2),
    }
    results = {**eraser.config.results, **results}
    return replace(eraser, config=replace(eraser.config, results=results))


def _print(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def _say_nothing(text: str) -> None: ...
