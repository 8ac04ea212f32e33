"""Second tries: another target, then a stronger recipe, where the check says it is not erased."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from warnings import warn

from diffusers_erase.editing.recipes import CLOSED_FORM, Edit
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
from diffusers_erase.errors import ErasureError
from diffusers_erase.making.check_pictures import APART
from diffusers_erase.making.checking import UNSURE, Check, check_eraser
from diffusers_erase.making.request import Request
from diffusers_erase.models.model import Model
from diffusers_erase.training.recipes import SURGICAL_AGE, SURGICAL_AGE_SD
from diffusers_erase.training.targets import Fixed


SOLVED, TRAINED = 4, 2
"""Most tries with a recipe that is solved, and with one that is trained."""

DEFAULTS = (CLOSED_FORM, SURGICAL_AGE, SURGICAL_AGE_SD)
"""The recipes that `erase()` takes if none is named; only these are made stronger."""

STRENGTHS = (1, 2, 4)
"""Factors of rank, steps and weight of the concept in further tries with one of `DEFAULTS`."""

PROMISING = 1.5
"""A stronger recipe is tried again if what is missing is at most so many times the last gain."""

FARTHER = 1.1
"""Factor by which the next target is farther from the concept than those before."""


class NotErasedError(ErasureError):
    """The check says that a concept is still drawn; `eraser` is the best that was made."""

    def __init__(self, message: str, eraser: EraserAdapter) -> None:
        super().__init__(message)
        self.eraser = eraser


@dataclass(frozen=True)
class _Try:
    request: Request
    eraser: EraserAdapter
    check: Check

    @property
    def targets(self) -> tuple[str | None, ...]:
        """The target of each concept."""
        return tuple(concept.target for concept in self.eraser.config.concepts)

    def to_dict(self) -> dict[str, Any]:
        """For the results in the config."""
        return {
            "targets": list(self.targets),
            "rank": self.eraser.config.rank,
            "verdict": self.check.verdict,
        }


def make_checked(
    make: Callable[[Request], EraserAdapter],
    model: Model,
    request: Request,
    *,
    allow_weak: bool,
    say: Callable[[str], None],
) -> EraserAdapter:
    """Make an eraser and check it; try again where a concept is still drawn.

    What is erased weakly is tried with more weight, or more steps, and a higher rank, with one of
    `DEFAULTS`; what is still drawn, with other candidates of the recipe's own choice. `say` is
    called with a sentence before each further try.

    Raises:
        NotErasedError: a concept is still drawn, or weakly erased, unless `allow_weak`; then, and
            where near words are harmed, it is a warning.
    """
    eraser, check = _make_and_check(make, model, request, say=say)
    if check.failed and not allow_weak:
        raise NotErasedError(_advice(eraser, check), eraser)
    if check.reason and not check.concepts:
        say(f"The eraser is not checked: {check.reason}")
    if check.unclear:
        warn("; ".join(check.sentences()), stacklevel=3)
    return eraser


def _make_and_check(
    make: Callable[[Request], EraserAdapter],
    model: Model,
    request: Request,
    *,
    say: Callable[[str], None],
) -> tuple[EraserAdapter, Check]:
    """The best eraser of all tries, with its check and these in the results of its config."""
    most = SOLVED if isinstance(request.recipe, Edit) else TRAINED
    tries: list[_Try] = []
    following: Request | None = request
    while following is not None:
        eraser = make(following)
        if tries:
            eraser = replace(eraser, config=_with_scores(eraser.config, tries[0].eraser.config))
        tries.append(_Try(following, eraser, check_eraser(model, following.concepts, eraser)))
        following = None
        if tries[-1].check.failed and len(tries) < most:
            following = _following(tries)
        if following is not None:
            say(
                f"{'; '.join(tries[-1].check.sentences())}: trying {_change(tries[-1], following)}."
            )
    best = min(tries, key=lambda each: each.check.badness)
    results: dict[str, Any] = best.check.to_dict()
    if len(tries) > 1:
        results["tries"] = [each.to_dict() for each in tries]
    config = best.eraser.config
    config = replace(config, results={**config.results, "check": results})
    return replace(best.eraser, config=config), best.check


def _following(tries: list[_Try]) -> Request | None:
    """The request of the next try; None if there is nothing else to try.

    A concept that is erased weakly needs a stronger recipe, as long as that brings it nearer to
    being erased; one that is drawn needs another target. A target of the user's that the base draws
    like the concept, or like another erased one, stays drawn like it.
    """
    best = min(tries, key=lambda each: each.check.badness)
    hopeless = best.check.near_targets or best.check.mistaken or _in_vain(tries)
    if tries[0].request.target is not None and hopeless:
        return None
    ways = [_stronger(best), _retargeted(tries)]
    if best.check.verdict == "not erased" or _in_vain(tries):
        ways.reverse()
    done = [(each.request.recipe, each.request.target) for each in tries]
    left = (way for way in ways if way is not None and (way.recipe, way.target) not in done)
    found = next(left, None)
    return found and replace(found, attempt=len(tries))


def _in_vain(tries: Sequence[_Try]) -> bool:
    """True if another step like that to the last try would leave the concept erased weakly."""
    if len(tries) < 2 or tries[-1].targets != tries[-2].targets:
        return False
    (_, before), (_, after) = (each.check.badness for each in tries[-2:])
    return after - UNSURE > PROMISING * (before - after)


def _retargeted(tries: list[_Try]) -> Request | None:
    """The last request with the next candidates; None if there are none."""
    first, last = tries[0], tries[-1]
    if first.request.target is not None:
        return None
    chosen, changed = [], False
    for k, concept in enumerate(first.eraser.config.concepts):
        others = _untried(tries, k, concept)
        wanted = concept.name in last.check.failed and bool(others)
        chosen.append(others[0] if wanted else last.targets[k])
        changed |= wanted
    return replace(last.request, target=Fixed(tuple(chosen))) if changed else None


def _stronger(best: _Try) -> Request | None:
    """The request with a stronger recipe; None for a recipe that is not one of `DEFAULTS`."""
    recipe: Any = best.request.recipe
    for own in DEFAULTS:
        for factor, following in pairwise(STRENGTHS):
            if own.name == recipe.name and replace(recipe, choose=own.choose) == _times(
                own, factor
            ):
                stronger = replace(_times(own, following), choose=recipe.choose)
                solved = Fixed(best.targets) if isinstance(own, Edit) else best.request.target
                return replace(best.request, target=solved, recipe=stronger)
    return None


def _times(recipe: Any, factor: int) -> Any:
    """The recipe with so many times the rank, and the steps or the weight of the concept."""
    stronger = replace(recipe, rank=factor * recipe.rank)
    if isinstance(recipe, Edit):
        return replace(stronger, keep_weight=recipe.keep_weight / factor)
    return replace(stronger, steps=factor * recipe.steps)


def _untried(tries: Sequence[_Try], k: int, concept: ErasedConcept) -> list[str]:
    """The next candidates of the k-th concept, the best first.

    Those are left out that the base draws like the concept, and no farther from it than what was
    tried: what the eraser's pictures of a concept still show, another name of its target does too.
    """
    found = dict[str, float]()
    for each in tries:
        found |= each.check.distances.get(concept.name, {})
    tried = {each.targets[k] for each in tries}
    farthest = max((found[word] for word in tried if word in found), default=0.0)
    least = max(APART, FARTHER * farthest)
    others = [word for word, _ in concept.ranked if word not in tried]
    return [word for word in others if found.get(word, least) >= least]


def _change(last: _Try, following: Request) -> str:
    if following.recipe != last.request.recipe:
        return "a stronger recipe"
    assert isinstance(following.target, Fixed)
    return " and ".join(repr(word) for word in following.target.words)


def _with_scores(config: EraserConfig, first: EraserConfig) -> EraserConfig:
    """The config with the candidates' scores of the first try, from which its target comes."""
    pairs = zip(first.concepts, config.concepts, strict=True)
    concepts = tuple(replace(old, target=new.target) for old, new in pairs)
    return replace(config, concepts=concepts)


def _advice(eraser: EraserAdapter, check: Check) -> str:
    """The message of the error: the concepts that are left, and what the user can do."""
    targets = ", ".join(
        f"{each.name!r} -> {'the prompt without it' if each.target is None else repr(each.target)}"
        for each in eraser.config.concepts
        if each.name in check.failed
    )
    tries = eraser.config.results["check"].get("tries", ())
    ways = f" Best of {len(tries)} tries." if tries else ""
    return (
        f"{'; '.join(check.sentences())} (targets: {targets}).{ways} Name another `target`, pass a "
        "`vocabulary`, or take another recipe; or `allow_weak=True` (`--allow-weak`) for this "
        "eraser as it is."
    )
