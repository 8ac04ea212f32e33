"""erase(): one call from a pipeline and a word to an eraser."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_erase.adapter import EraserAdapter, EraserConfig, versions
from diffusers_erase.attachment import Attached, attached, row_space
from diffusers_erase.cache import TensorCache, digest
from diffusers_erase.concepts import Concept, Vocabulary, encode, unknown_words
from diffusers_erase.crossattention import (
    TEXT_PARTS,
    denoiser_of,
    fingerprint,
    projections,
)
from diffusers_erase.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.editing.solving import factors_of, text_edit
from diffusers_erase.errors import ErasureError
from diffusers_erase.runtime.plugin import list_erasures
from diffusers_erase.training.checkpoints import Checkpoints
from diffusers_erase.training.pool import pool, spared
from diffusers_erase.training.recipes import Recipe, default_recipe, recipe_named
from diffusers_erase.training.targets import (
    Answers,
    Choice,
    Fixed,
    Stage,
    Target,
    as_target,
)
from diffusers_erase.training.trainer import Step, train
from diffusers_erase.trajectories import Trajectories, sample_trajectories


Erased = str | Concept | Sequence[str | Concept]
"""One concept or several, by name or with everything that is known of them."""


def erase(
    pipe: Any,
    concept: Erased,
    *,
    target: str | tuple[str | None, ...] | Target | None = None,
    vocabulary: Sequence[str] | Vocabulary | None = None,
    keep: Sequence[str] = (),
    protect: Sequence[str] = (),
    recipe: str | Recipe | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    work: str | Path | None = None,
    accelerator: Any = None,
    callback_on_step_end: Callable[[Step], None] | None = None,
) -> EraserAdapter:
    """Make an eraser, after which the concept is answered as its target; leaves the pipeline alone.

    Args:
        pipe: a Stable Diffusion pipeline without other adapters or erasures.
        concept: its name, or a `Concept` with synonyms, kind and prompts of its own; several for
            one eraser of them all.
        target: what to draw instead, in the concept's place (one for all concepts, or a tuple with
            one for each), or a way to choose it such as `Nearest(vocabulary)`. Left out, the recipe
            chooses from the vocabulary, or takes the same prompt without the concept. A near
            neighbour costs the others least.
        vocabulary: other concepts: candidates for the target, and what is to be preserved.
        keep: prompts whose pictures must stay as they are; each costs sampling time and buys
            preservation.
        protect: prompts that must not change at all, exactly, as long as their words are all there
            is; each takes freedom from the eraser. Works where only keys and values are trained.
        recipe: a name from `RECIPES`, or a `Recipe` with parts and numbers of your own;
            `surgical-age` if left out.
        steps: training steps, if not the recipe's.
        seed: of trajectories, weights and minibatches; the same seed gives the same eraser on the
            same machine.
        progress: whether to show a progress bar.
        work: a folder for trajectories and checkpoints; a run that was stopped goes on from there.
        accelerator: accelerate's `Accelerator`, for its precision, processes and trackers.
        callback_on_step_end: called after every step, when the pipeline wears the eraser as it is
            so far: a picture drawn there shows how far it has come.

    Raises:
        ErasureError: an empty concept, an unknown recipe, a pipeline of another kind, or one that
            wears adapters or erasures; whatever is wrong is said before anything is computed.
    """
    words = _vocabulary(vocabulary)
    if not isinstance(recipe, Recipe):
        recipe = recipe_named(recipe) if recipe is not None else default_recipe(words)
    recipe = recipe if steps is None else replace(recipe, steps=steps)
    order = _Order(
        concepts=_concepts(concept),
        recipe=recipe,
        vocabulary=words,
        target=target if target is None else as_target(target),
        keep=_prompts("keep", keep),
        protect=_prompts("protect", protect),
        seed=seed,
    )
    unet = _check(pipe, order)
    _warn_of_unknown_words(pipe, order)
    hold = _held_states(pipe, order)
    with attached(unet, parts=recipe.parts, rank=recipe.rank, seed=seed, hold=hold) as lora:
        folder = Path(work) if work else None
        loop, answers = _loop(pipe, order, lora, work=folder, accelerator=accelerator)
        names = ", ".join(repr(c.name) for c in order.concepts)
        bar = tqdm(loop, f"erasing {names}", recipe.steps, disable=not progress)
        for step in bar:
            bar.set_postfix(loss=f"{step.loss:.4f}")
            if accelerator is not None:
                accelerator.log({"loss": step.loss}, step=step.index)
            if callback_on_step_end is not None:
                callback_on_step_end(step)
        factors = lora.factors()
    return EraserAdapter(factors, _config(pipe, order, answers.choices()))


@dataclass(frozen=True)
class _Order:
    """What was asked for, in one form."""

    concepts: tuple[Concept, ...]
    recipe: Recipe
    vocabulary: Vocabulary | None
    target: Target | None
    keep: tuple[str, ...]
    protect: tuple[str, ...]
    seed: int

    @property
    def way(self) -> Target:
        """How the target is chosen."""
        return self.target or self.recipe.target(self.vocabulary)


def _concepts(concept: Erased) -> tuple[Concept, ...]:
    several = (concept,) if isinstance(concept, str | Concept) else tuple(concept)
    if not several:
        raise ErasureError("There is no concept to erase; name one, for example 'car'.")
    return tuple(each if isinstance(each, Concept) else Concept(each) for each in several)


def _vocabulary(words: Sequence[str] | Vocabulary | None) -> Vocabulary | None:
    if words is None or isinstance(words, Vocabulary):
        return words
    return Vocabulary(_prompts("vocabulary", words))


def _prompts(name: str, several: Sequence[str]) -> tuple[str, ...]:
    if isinstance(several, str):
        raise ErasureError(f"`{name}` is a sequence of strings, not one string.")
    return tuple(several)


def _held_states(pipe: Any, order: _Order) -> Tensor | None:
    prompts = [*([""] if order.recipe.hold_null else []), *order.protect]
    return encode(pipe, prompts) if prompts else None


def _loop(
    pipe: Any, order: _Order, lora: Attached, *, work: Path | None, accelerator: Any
) -> tuple[Iterator[Step], Answers]:
    """Everything the loop needs is made here; nothing is trained before it is asked for a step."""
    recipe, seed = order.recipe, order.seed
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
        accelerator.mixed_precision if accelerator is not None else "no"
    )
    schedule = NoiseSchedule.of(pipe.scheduler)
    denoiser = Denoiser(denoiser_of(pipe), schedule, lora.silenced, precision=precision)
    weights = _weights(denoiser.unet) if work else ""
    cache = TensorCache(work / "cache") if work else None
    sample = _Sampling(pipe, denoiser, recipe, cache, weights)
    written = [(c.written(recipe.trajectories), k) for k, c in enumerate(order.concepts)]
    prompts = tuple(prompt for several, _ in written for prompt in several)
    owners = torch.tensor([k for several, k in written for _ in several])
    trajectories = {"concept": sample(prompts, seed)}
    edit = _Editing(pipe, order, lora)
    stage = Stage(
        denoiser,
        lambda texts: encode(pipe, texts),
        order.concepts,
        prompts,
        owners,
        trajectories["concept"],
        edit,
    )
    start = lora.factors()
    answers = order.way.begin(stage, seed=seed)
    if recipe.warm:
        edit(*_texts(stage, answers))
    else:
        lora.begin(start)  # whatever was tried on is taken off
    kept = (*order.keep, *pool(stage, order.vocabulary, recipe.pool))
    if kept:
        trajectories["kept"] = sample(kept, seed + 1)
    loop = train(
        denoiser,
        lora.parameters,
        trajectories,
        recipe.loss(keeps=bool(kept)),
        pace=recipe.pace,
        answers=answers,
        seed=seed,
        accelerator=accelerator,
        checkpoints=_checkpoints(order, work, weights, str(precision)) if work else None,
    )
    return loop, answers


def _texts(stage: Stage, answers: Answers) -> tuple[Tensor, Tensor]:
    """States of the concepts' prompts, and of what these are answered as."""
    prompts = range(len(stage.prompts))
    first = torch.stack([(stage.trajectories.prompt == k).nonzero()[0, 0] for k in prompts])
    states = answers.answer(stage.trajectories.at(stage.denoiser, first)).states
    return states["concept"], states["target"]


@dataclass(frozen=True)
class _Editing:
    """Lets the LoRA begin at the closed-form edit from some text states to others."""

    pipe: Any
    order: _Order
    lora: Attached

    def __call__(self, E: Tensor, V: Tensor) -> None:
        P = text_edit(E, V, self._spared, hold=self._held)
        layers = projections(denoiser_of(self.pipe), TEXT_PARTS)
        trained = {path: layers[path] for path in self.lora.factors() if path in layers}
        self.lora.begin(factors_of(P, trained, self.order.recipe.rank))

    @cached_property
    def _spared(self) -> Tensor:
        texts = spared(self.order.vocabulary, self.order.concepts)
        return encode(self.pipe, ["", *self.order.keep, *texts])

    @cached_property
    def _held(self) -> Tensor | None:
        states = _held_states(self.pipe, self.order)
        return None if states is None else row_space(states)


@dataclass(frozen=True)
class _Sampling:
    """Trajectories of prompts, from the cache if they were sampled before."""

    pipe: Any
    denoiser: Denoiser
    recipe: Recipe
    cache: TensorCache | None
    weights: str

    def __call__(self, prompts: Sequence[str], seed: int) -> Trajectories:
        states, null = encode(self.pipe, prompts), encode(self.pipe, [""])
        options = {
            "guidance": self.recipe.guidance,
            "steps": self.recipe.sampling_steps,
            "sampler": self.recipe.sampler,
            "seed": seed,
        }

        def sampled() -> Trajectories:
            return sample_trajectories(
                self.denoiser,
                self.pipe.scheduler,
                states,
                null,
                **options,  # type: ignore[arg-type]
            )

        if self.cache is None:
            return sampled()
        key = {
            **options,
            "weights": self.weights,
            "texts": digest(states, null),
            "scheduler": {k: repr(v) for k, v in self.pipe.scheduler.config.items()},
            "class": type(self.pipe.scheduler).__name__,
            "precision": str(self.denoiser.precision),
        }
        tensors = self.cache.get(key, lambda: sampled().tensors())
        return Trajectories.of(tensors, states, null)


def _weights(unet: Any) -> str:
    """A name for the exact values of the bare base's weights."""
    return digest(*(value for name, value in unet.state_dict().items() if "lora_" not in name))


def _checkpoints(order: _Order, work: Path, weights: str, precision: str) -> Checkpoints:
    run = {
        **order.recipe.numbers(),
        "recipe": order.recipe.name,
        "concepts": [repr(concept) for concept in order.concepts],
        "target": repr(order.target),
        "vocabulary": list(order.vocabulary.words) if order.vocabulary else None,
        "keep": list(order.keep),
        "protect": list(order.protect),
        "seed": order.seed,
        "weights": weights,
        "precision": precision,
    }
    return Checkpoints(work / "checkpoints", run)


def _config(pipe: Any, order: _Order, chosen: Sequence[Choice]) -> EraserConfig:
    targets = [choice.target for choice in chosen]
    return EraserConfig(
        concept=", ".join(concept.name for concept in order.concepts),
        kind=order.concepts[0].kind,
        synonyms=tuple(name for concept in order.concepts for name in concept.synonyms),
        target=", ".join(t or "nothing" for t in targets) if any(targets) else None,
        recipe=order.recipe.name,
        parameters={
            **order.recipe.numbers(),
            "seed": order.seed,
            "own_prompts": [prompt for concept in order.concepts for prompt in concept.prompts],
            "kept_prompts": list(order.keep),
            "protected_prompts": list(order.protect),
            "choices": [
                {"concept": c.concept, "target": c.target, "how": c.how, "scores": dict(c.scores)}
                for c in chosen
            ],
        },
        base_model=_base_model(pipe),
        fingerprint=fingerprint(denoiser_of(pipe)),
        rank=order.recipe.rank,
        versions=versions(),
    )


def _check(pipe: Any, order: _Order) -> Any:
    """The denoiser, if the order can be carried out there."""
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
    order.way.check(order.concepts)
    NoiseSchedule.of(pipe.scheduler)
    return unet


def _base_model(pipe: Any) -> str:
    """The Hub id the pipeline came from, or its folder's name: paths are nobody's business."""
    name = str(getattr(pipe, "name_or_path", None) or "")
    return Path(name).name if Path(name).exists() else name


def _warn_of_unknown_words(pipe: Any, order: _Order) -> None:
    names = [name for concept in order.concepts for name in concept.names]
    targets = order.way.words if isinstance(order.way, Fixed) else ()
    for phrase in (*names, *targets):
        for word, near in unknown_words(pipe.tokenizer, phrase).items():
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            warn(f"The text encoder does not know the word {word!r}.{hint}", stacklevel=3)
