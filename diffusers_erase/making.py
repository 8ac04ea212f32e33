"""erase(): one call from a pipeline and a word to an eraser."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from warnings import warn

from torch import Tensor
from tqdm.auto import tqdm

from diffusers_erase.adapter import EraserAdapter, EraserConfig, versions
from diffusers_erase.attachment import Attached, attached
from diffusers_erase.concepts import Concept, encode, unknown_words
from diffusers_erase.crossattention import denoiser_of, fingerprint
from diffusers_erase.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.errors import ErasureError
from diffusers_erase.runtime.plugin import list_erasures
from diffusers_erase.training.objectives import Keep, Objective, Steer, Sum
from diffusers_erase.training.recipes import RECIPES, Recipe
from diffusers_erase.training.trainer import Pace, Step, train
from diffusers_erase.trajectories import Trajectories, sample_trajectories


def erase(
    pipe: Any,
    concept: str | Concept,
    *,
    target: str | None = None,
    keep: Sequence[str] = (),
    recipe: str | Recipe = "replace",
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> EraserAdapter:
    """Make an eraser, after which the concept is answered as `target`; leaves the pipeline alone.

    Args:
        pipe: a Stable Diffusion pipeline without other adapters or erasures.
        concept: its name, or a `Concept` with synonyms, kind and prompts of its own.
        target: what to draw instead, in the concept's place; None for the same prompt without the
            concept. A near neighbour costs the others least; None leaves the choice to the model.
        keep: prompts whose pictures must stay as they are; each costs sampling time and buys
            preservation.
        recipe: `replace`, `esd`, or a `Recipe` with numbers of your own.
        steps: training steps, if not the recipe's.
        seed: of trajectories, weights and minibatches; the same seed gives the same eraser on the
            same machine.
        progress: whether to show a progress bar.

    Raises:
        ErasureError: an empty concept, an unknown recipe, a pipeline of another kind, or one that
            wears adapters or erasures.
    """
    concept = concept if isinstance(concept, Concept) else Concept(concept)
    recipe = _recipe(recipe, steps)
    unet = _check(pipe, concept, target=target, keep=keep)
    _warn_of_unknown_words(pipe, concept, target)
    with attached(unet, parts=recipe.parts, rank=recipe.rank, seed=seed) as lora:
        loop = _steps(pipe, concept, lora, target=target, keep=keep, recipe=recipe, seed=seed)
        bar = tqdm(loop, f"erasing '{concept.name}'", recipe.steps, disable=not progress)
        for step in bar:
            bar.set_postfix(loss=f"{step.loss:.4f}")
        factors = lora.factors()
    config = EraserConfig(
        concept=concept.name,
        kind=concept.kind,
        synonyms=concept.synonyms,
        target=target,
        recipe=recipe.name,
        parameters={
            **asdict(recipe),
            "seed": seed,
            "own_prompts": list(concept.prompts),
            "kept_prompts": list(keep),
        },
        base_model=_base_model(pipe),
        fingerprint=fingerprint(unet),
        rank=recipe.rank,
        versions=versions(),
    )
    return EraserAdapter(factors, config)


def _recipe(recipe: str | Recipe, steps: int | None) -> Recipe:
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ErasureError(f"No recipe named {recipe!r}. Known: {', '.join(sorted(RECIPES))}.")
        recipe = RECIPES[recipe]
    return recipe if steps is None else replace(recipe, steps=steps)


def _steps(
    pipe: Any,
    concept: Concept,
    lora: Attached,
    *,
    target: str | None,
    keep: Sequence[str],
    recipe: Recipe,
    seed: int,
) -> Iterator[Step]:
    schedule = NoiseSchedule.of(pipe.scheduler)
    denoiser = Denoiser(denoiser_of(pipe), schedule, lora.silenced)
    prompts = concept.written(recipe.trajectories)
    answers = [concept.replaced(p, target) if target else concept.without(p) for p in prompts]
    null = encode(pipe, [""])

    def sampled(states: Tensor, shift: int) -> Trajectories:
        return sample_trajectories(
            denoiser,
            pipe.scheduler,
            states,
            null,
            guidance=recipe.guidance,
            steps=recipe.sampling_steps,
            seed=seed + shift,
        )

    trajectories = {
        "concept": sampled(encode(pipe, prompts), 0).remember(
            denoiser, "target", encode(pipe, answers)
        )
    }
    terms: list[tuple[float, Objective]] = [(1.0, Steer(recipe.eta))]
    if keep:
        trajectories["kept"] = sampled(encode(pipe, keep), 1)
        terms.append((recipe.keep_weight, Keep()))
    return train(
        denoiser,
        lora.parameters,
        trajectories,
        Sum(tuple(terms)),
        pace=Pace(recipe.steps, recipe.batch, recipe.learning_rate),
        seed=seed,
    )


def _check(pipe: Any, concept: Concept, *, target: str | None, keep: Sequence[str]) -> Any:
    """The denoiser, if an eraser for the concept can be made there."""
    unet: Any = denoiser_of(pipe)
    config = unet.config
    needs_more = (
        type(unet).__name__ != "UNet2DConditionModel"
        or config.in_channels != config.out_channels
        or config.addition_embed_type
        or config.encoder_hid_dim_type
        or config.class_embed_type
        or not isinstance(config.sample_size, int)
    )
    if needs_more:
        raise ErasureError(
            f"Erasers are made on Stable Diffusion 1 and 2; '{type(pipe).__name__}' needs more "
            "than a prompt. Erasers can still be loaded there."
        )
    if list_erasures(pipe):
        raise ErasureError(
            f"The pipeline has erasures loaded ({', '.join(list_erasures(pipe))}); "
            "erasers are made from the bare base: call `pipe.unload_erasures()` first."
        )
    if getattr(pipe.text_encoder, "peft_config", None):
        raise ErasureError(
            "The text encoder wears adapters; erasers are made from the bare base: call "
            "`pipe.unload_lora_weights()` first."
        )
    if isinstance(keep, str):
        raise ErasureError("`keep` is a sequence of prompts, not one string.")
    if target is not None and not target.strip():
        raise ErasureError("The target is empty; leave it out for the prompt without the concept.")
    if target is not None and not concept.replaced(target, "").strip():
        raise ErasureError(f"The target {target!r} is the concept itself; choose another one.")
    return unet


def _base_model(pipe: Any) -> str:
    """The Hub id the pipeline came from, or its folder's name: paths are nobody's business."""
    name = str(getattr(pipe, "name_or_path", None) or "")
    return Path(name).name if Path(name).exists() else name


def _warn_of_unknown_words(pipe: Any, concept: Concept, target: str | None) -> None:
    for phrase in (*concept.names, *([target] if target else [])):
        for word, near in unknown_words(pipe.tokenizer, phrase).items():
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            warn(f"The text encoder does not know the word {word!r}.{hint}", stacklevel=3)
