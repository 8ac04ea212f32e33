"""Erasers by training: sampled trajectories, a start at the closed-form edit, and the loop."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_erase.concepts.examples import prompts_to_erase
from diffusers_erase.editing.keeping import kept_beside
from diffusers_erase.editing.own_prompts import own_words
from diffusers_erase.editing.recipes import CLOSED_FORM
from diffusers_erase.editing.solvers import Problem, Replace, weights_gram
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.errors import ErasureError, require_choice
from diffusers_erase.linalg.subspace import row_space
from diffusers_erase.making.request import (
    Request,
    check_words,
    config_of,
    require_erasable,
)
from diffusers_erase.making.statistics import Statistics
from diffusers_erase.models.architectures import fingerprint, text_weights
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.lora import Attached, attached
from diffusers_erase.models.model import Model
from diffusers_erase.models.trajectories import Trajectories, sample_trajectories
from diffusers_erase.storage.tensor_cache import TensorCache, digest
from diffusers_erase.training.checkpoints import Checkpoints
from diffusers_erase.training.inner_loop import InnerLoop
from diffusers_erase.training.pool import NEAR_WORDS, near_words, pool
from diffusers_erase.training.recipes import Recipe
from diffusers_erase.training.targets import Target, TargetContext, TargetState
from diffusers_erase.training.trainer import Renewal, Step, ending, train


PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Accelerate's name of a mixed precision -> the type of autocast."""


def train_eraser(
    model: Model,
    request: Request,
    *,
    progress: bool,
    work: Path | None,
    accelerator: Any,
    callback_on_step_end: Callable[[Step], None] | None,
    statistics: Callable[[], Statistics],
) -> EraserAdapter:
    """Train the eraser that is asked for; the arguments are those of `erase`.

    `statistics` returns those shared with other tries; called after all checks of the request.
    """
    recipe = _recipe(request)
    way = request.target or recipe.target(request.vocabulary)
    unet = _check(model, request, way, accelerator)
    check_words(model, request)
    protect = request.protected_states(model)
    with attached(
        unet, parts=recipe.parts, rank=request.rank, seed=request.seed, protect=protect
    ) as lora:
        shared = statistics()
        loop, inner = _loop(model, request, way, lora, shared, work=work, accelerator=accelerator)
        names = ", ".join(repr(c.name) for c in request.concepts)
        bar = tqdm(loop, f"erasing {names}", recipe.steps, disable=not progress)
        for step in bar:
            bar.set_postfix(loss=f"{step.loss:.4f}")
            if accelerator is not None:
                accelerator.log({"loss": step.loss}, step=step.index)
            if callback_on_step_end is not None:
                callback_on_step_end(step)
        factors = lora.factors()
    _, end = ending(inner, recipe.steps)
    early = {"ended_after_steps": end} if end < recipe.steps else {}
    known = {
        "rank": request.rank,
        "fingerprint": fingerprint(unet),
        "parameters": {**shared.used, **early},
    }
    choices = [choice for each in inner for choice in each.choices()]
    return EraserAdapter((Lora(factors),), config_of(model, request, choices, **known))


def _recipe(request: Request) -> Recipe:
    assert isinstance(request.recipe, Recipe)
    return request.recipe


def _loop(
    model: Model,
    request: Request,
    way: Target,
    lora: Attached,
    statistics: Statistics,
    *,
    work: Path | None,
    accelerator: Any,
) -> tuple[Iterator[Step], tuple[InnerLoop, ...]]:
    """The training loop before its first step, and its inner loops."""
    recipe, seed = _recipe(request), request.seed
    precision = PRECISIONS[accelerator.mixed_precision if accelerator is not None else "no"]
    schedule = model.schedule
    denoiser = Denoiser(model.denoiser, schedule, lora.adapter_disabled, precision=precision)
    weights = _weights(denoiser.unet) if work else ""
    cache = TensorCache(work / "cache") if work else None
    sample = _Sampling(model, denoiser, recipe, cache, weights)
    prompts = [
        (p, k)
        for k, c in enumerate(request.concepts)
        for p in prompts_to_erase(c, recipe.trajectories, request.concepts)
    ]
    texts = [prompt.text for prompt, _ in prompts]
    trajectories = {"concept": sample(texts, seed, noised=recipe.noised)}
    context = TargetContext(
        denoiser,
        model.encode,
        request.concepts,
        tuple(prompt for prompt, _ in prompts),
        torch.tensor([k for _, k in prompts]),
        trajectories["concept"],
        guided=len(trajectories["concept"]) - len(texts) * recipe.noised,
        factors=lora.factors,
        resampled=recipe.refresh > 0,
        known=own_words(model.tokenizer),
        pipeline=model.pipeline,
    )
    edit = _StartingEdit(model, request, lora, context, statistics)
    context = replace(context, apply_edit=edit)
    start = lora.factors()
    targets = way.begin(context, seed=seed)
    if recipe.warm:
        edit(*_texts(context, targets))
    else:
        lora.begin(start)  # undoes the edits that were tried
    kept = (*request.keep, *pool(context, request.vocabulary, recipe.pool))
    if kept:
        trajectories["kept"] = sample(kept, seed + 1)
        context = replace(context, kept=trajectories["kept"])
    inner = (targets, *(each.begin(context, seed=seed) for each in recipe.adversaries))
    loop = train(
        denoiser,
        lora.parameters,
        trajectories,
        recipe.loss(keeps=bool(kept)),
        pace=recipe.pace,
        inner=inner,
        renewal=sample.anew(texts, seed),
        seed=seed,
        accelerator=accelerator,
        checkpoints=_checkpoints(request, work, weights, str(precision)) if work else None,
    )
    return loop, inner


def _texts(context: TargetContext, targets: TargetState) -> tuple[Tensor, Tensor]:
    """Text states of the concepts' prompts, and of the same prompts about the targets."""
    prompts = range(len(context.prompts))
    first = torch.stack([(context.trajectories.prompt == k).nonzero()[0, 0] for k in prompts])
    states = targets.with_target(context.trajectories.at(context.denoiser, first)).states
    return states["concept"], states["target"]


@dataclass(frozen=True)
class _StartingEdit:
    """Sets the LoRA in training to the closed-form edit from text states E to V."""

    model: Model
    request: Request
    lora: Attached
    context: TargetContext
    statistics: Statistics

    def __call__(self, E: Tensor, V: Tensor) -> None:
        weight, ridge = CLOSED_FORM.keep_weight / len(self.request.concepts), CLOSED_FORM.ridge
        problem = Problem.of(
            E, V, self._kept, keep_weight=weight, ridge=ridge, protect=self._protected
        )
        T = Replace()(problem)
        best, _ = T.truncated(
            self.request.rank, second_moment=problem.second_moment, read=self._reading
        )
        self.lora.begin(best.factors(self._weights))

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        trained = self.lora.factors()
        weights = text_weights(self.model.denoiser)
        return {path: W for path, W in weights.items() if path in trained}

    @cached_property
    def _reading(self) -> Tensor:
        return weights_gram(self._weights)

    @cached_property
    def _kept(self) -> Tensor:
        concepts, vocabulary = self.request.concepts, self.request.vocabulary
        words = vocabulary.others(concepts) if vocabulary else ()
        shared = self.statistics
        return kept_beside(
            shared.texts,
            concepts,
            words,
            near_words(self.context, words),
            NEAR_WORDS,
            keep=self.request.keep,
            general=shared.general.without(shared.texts, concepts).gram,
            cache=shared.cache,
            encoder=shared.encoder,
        )

    @cached_property
    def _protected(self) -> Tensor | None:
        states = self.request.protected_states(self.model)
        return None if states is None else row_space(states)


@dataclass(frozen=True)
class _Sampling:
    """Samples trajectories of prompts, or reads them from the cache."""

    model: Model
    denoiser: Denoiser
    recipe: Recipe
    cache: TensorCache | None
    weights: str

    def __call__(self, prompts: Sequence[str], seed: int, *, noised: int = 0) -> Trajectories:
        """Sample these prompts, and noise the picture of each at `noised` times."""
        states, null = self.model.encode(prompts), self.model.encode([""])

        if self.cache is None:
            return self._of_base(states, null, seed, noised)
        key = {
            **self._options,
            "noised": noised,
            "seed": seed,
            "weights": self.weights,
            "texts": digest(states, null),
            "scheduler": {k: repr(v) for k, v in self._scheduler.config.items()},
            "class": type(self._scheduler).__name__,
            "precision": str(self.denoiser.precision),
        }
        tensors = self.cache.get(key, lambda: self._of_base(states, null, seed, noised).tensors())
        return Trajectories.of(tensors, states, null)

    @property
    def _scheduler(self) -> Any:
        return self.model.pipeline.scheduler

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "guidance": self.recipe.guidance,
            "steps": self.recipe.sampling_steps,
            "sampler": self.recipe.sampler,
        }

    def _of_base(self, states: Tensor, null: Tensor, seed: int, noised: int) -> Trajectories:
        """Trajectories of the base, and its pictures with new noise if any are asked for."""
        found, guidance = self._sampled(states, null, seed), self.recipe.guidance
        if not noised:
            return found
        return found.with_noised_pictures(self.denoiser, noised, guidance=guidance, seed=seed)

    def anew(self, prompts: Sequence[str], seed: int) -> Renewal | None:
        """Trajectories sampled by the student, from new noise each time; None without `refresh`."""
        if not self.recipe.refresh:
            return None
        states, null = self.model.encode(prompts), self.model.encode([""])

        def sample(step: int) -> Trajectories:
            return self._sampled(states, null, seed * 1_000_003 + step, student=True)

        return Renewal(self.recipe.refresh, sample)

    def _sampled(
        self, states: Tensor, null: Tensor, seed: int, *, student: bool = False
    ) -> Trajectories:
        options = {**self._options, "seed": seed, "student": student}
        return sample_trajectories(self.denoiser, self._scheduler, states, null, **options)


def _weights(unet: Any) -> str:
    """Digest of the base's weights, without those of the LoRA."""
    return digest(*(value for name, value in unet.state_dict().items() if "lora_" not in name))


def _checkpoints(request: Request, work: Path, weights: str, precision: str) -> Checkpoints:
    run = {
        **request.recipe.numbers(),
        "recipe": request.recipe.name,
        "concepts": [repr(concept) for concept in request.concepts],
        "target": repr(request.target),
        "vocabulary": list(request.vocabulary.words) if request.vocabulary else None,
        "keep": list(request.keep),
        "protect": list(request.protect),
        "seed": request.seed,
        "weights": weights,
        "precision": precision,
    }
    folder = f"checkpoints-{request.attempt + 1}" if request.attempt else "checkpoints"
    return Checkpoints(work / folder, run)


def _check(model: Model, request: Request, way: Target, accelerator: Any) -> Any:
    """The denoiser, if the eraser can be trained on it."""
    unet: Any = model.denoiser
    reason = model.untrainable
    if reason:
        raise ErasureError(
            f"Erasers are trained on Stable Diffusion 1 and 2; {reason}. Solve for one instead "
            '(`recipe="closed-form"`); erasers can be loaded there, too.'
        )
    require_erasable(model)
    if accelerator is not None:
        require_choice("mixed precision", accelerator.mixed_precision, PRECISIONS)
    way.check(request.concepts, request.vocabulary)
    recipe = _recipe(request)
    if recipe.steers_null and not all(prompt.strip() for prompt in request.protect):
        raise ErasureError(
            f"Recipe '{recipe.name}' changes the score of the empty prompt, which is in `protect`; "
            "leave it out there, or choose another recipe."
        )
    NoiseSchedule.of(model.pipeline.scheduler)
    return unet
