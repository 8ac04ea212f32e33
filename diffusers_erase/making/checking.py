"""The check of a new eraser: does the base model still see the concept in what is drawn?"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept
from diffusers_erase.editing.choosing import general_names, things_among
from diffusers_erase.editing.own_prompts import own_words
from diffusers_erase.editing.texts import texts_of
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.making.check_pictures import (
    APART,
    PICTURES,
    Harm,
    Pictures,
    target_distances,
)
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.model import Model
from diffusers_erase.models.trajectories import Trajectories
from diffusers_erase.runtime.plugin import load_erasure, unload_erasures


Verdict = Literal["erased", "weak", "not erased", "not checked"]

DRAWN, UNSURE = -0.2, -0.85
"""Mean evidence above which a concept is not erased, and above which it is weakly erased. Pictures
with more than `UNSURE` may still show it."""

SHOWN = 0.5
"""Evidence of a single picture above which its concept is at most erased weakly."""

CLOSE = (-0.92, -0.5)
"""Range of the worst evidence in which as many pictures are drawn again."""

KNOWN = 0.2
"""Mean evidence from which on the base itself is taken to draw a name."""


@dataclass(frozen=True)
class Check:
    """The base model's view of what an eraser draws."""

    verdict: Verdict
    """The worst of the concepts."""
    concepts: Mapping[str, Verdict] = field(default_factory=dict)
    evidence: Mapping[str, float] = field(default_factory=dict)
    """Name -> mean evidence that its pictures show the concept: above 0 if its prompt explains them
    better than the prompt without it, or about the target."""
    left: Mapping[str, float] = field(default_factory=dict)
    """Name -> share of its pictures that may still show the concept."""
    mistaken: Mapping[str, str] = field(default_factory=dict)
    """Concept -> another erased concept that is drawn for it."""
    distances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Concept -> its target, and where it is not erased the other candidates -> how differently the
    base predicts for them: below `APART` it draws them like the concept."""
    harms: Mapping[str, float] = field(default_factory=dict)
    """Near word -> relative squared change of its guidance, where that is above `HARM`."""
    general: tuple[str, ...] = ()
    """Names that may be words for many things, which are still drawn by their own names."""
    things: tuple[str, ...] = ()
    """Concepts that are no objects, and whose names by themselves are still drawn as before: `a
    photo of a car`, where `car` is erased as a style."""
    unknown: tuple[str, ...] = ()
    """Names that the base itself does not draw, so that they could not be checked."""
    layout: float | None = None
    """Mean correlation of erased and base latents from the same noise."""
    reason: str = ""
    """Why nothing was checked."""

    def to_dict(self) -> dict[str, Any]:
        """For the results in the config."""
        numbers = {"left": self.left, "evidence": self.evidence, "harms": self.harms}
        rounded = {name: _rounded(row) for name, row in numbers.items()}
        return {
            "verdict": self.verdict,
            "concepts": dict(self.concepts),
            **rounded,
            **({"mistaken": dict(self.mistaken)} if self.mistaken else {}),
            **(
                {"target distances": {k: _rounded(v) for k, v in self.distances.items()}}
                if self.distances
                else {}
            ),
            **{
                name: list(found)
                for name, found in (
                    ("general", self.general),
                    ("things", self.things),
                    ("unknown", self.unknown),
                )
                if found
            },
            **({} if self.layout is None else {"layout kept": round(self.layout, 3)}),
            **({"reason": self.reason} if self.reason else {}),
        }

    @property
    def failed(self) -> list[str]:
        """The concepts that are not erased, or weakly."""
        return [name for name, verdict in self.concepts.items() if _SEVERITY[verdict] > 1]

    @property
    def near_targets(self) -> dict[str, str]:
        """Concept -> its target, where the base draws that like the concept."""
        found = {}
        for name, row in self.distances.items():
            target, distance = next(iter(row.items()))
            if distance < APART:
                found[name] = target
        return found

    @property
    def unclear(self) -> bool:
        """True if a concept is left or could not be seen, or a near word is harmed."""
        return bool(self.failed or self.harms or self.general or self.things or self.unknown)

    @property
    def badness(self) -> tuple[int, float]:
        """A number that is lower the better the concepts are erased: severity, then evidence."""
        worst = max(self.evidence.values(), default=0.0)
        return _SEVERITY[self.verdict], math.inf if self.near_targets else worst

    def sentences(self) -> list[str]:
        """Sentences that say what is still drawn, what is drawn instead, and what is harmed."""
        found = []
        for name in self.failed:
            verdict = (
                "is still drawn" if self.concepts[name] == "not erased" else "is erased weakly"
            )
            found.append(f"{name!r} {verdict}")
        shares = [f"{share:.0%} of {name!r}" for name, share in self.left.items() if share]
        if found and shares:
            found.append(f"pictures that may still show it: {', '.join(shares)}")
        found += [f"{name!r} is drawn as {other!r}" for name, other in self.mistaken.items()]
        found += [
            f"the base draws the target {target!r} like {name!r} in some pictures"
            for name, target in self.near_targets.items()
        ]
        if self.unknown:
            names = ", ".join(map(repr, self.unknown))
            found.append(f"{names} could not be checked: the base does not draw it in a few steps")
        found += [
            f"{name!r} by itself is still drawn as before; to erase that, pass kind='object'"
            for name in self.things
        ]
        found += [
            f"{name!r} may be a word for many things, which are still drawn by their own names; to "
            f'erase these too, pass Concept("{name}", synonyms=[...])'
            for name in self.general
        ]
        if self.harms:
            words = ", ".join(f"{word!r} ({value:.2f})" for word, value in self.harms.items())
            found.append(f"it changes near words: {words}")
        return found


_SEVERITY: dict[Verdict, int] = {"not checked": 0, "erased": 1, "weak": 2, "not erased": 3}


@torch.no_grad()
def check_eraser(model: Model, concepts: Sequence[Concept], eraser: EraserAdapter) -> Check:
    """Draw the concepts with the eraser in a few steps, and ask the base what the pictures show.

    A picture shows the concept if its prompt explains it better than the prompt without the concept
    does, and better than the prompt about the target (`models.diffusion_classifier.evidence`).
    Names that the base itself does not draw are left out. A concept takes some 80 UNet
    evaluations, or twice as many in a close case; the model is the base again afterwards.
    """
    try:
        denoiser = model.noise_predictor()
    except ErasureError as error:
        return Check("not checked", reason=str(error))
    texts, things = texts_of(model), things_among(own_words(model.tokenizer))
    wide = {concept.name: general_names(texts, concept, things) for concept in concepts}
    general = tuple(names[0] for names in wide.values() if names)
    looks = [_look(model, denoiser, concepts, eraser, first=0, wide=wide)]
    severity, worst = _judged(concepts, looks, wide).badness
    if severity and CLOSE[0] < worst < CLOSE[1]:
        more = _look(model, denoiser, concepts, eraser, first=2 * PICTURES, wide=wide)
        looks.append(more)
    found = replace(_judged(concepts, looks, wide), general=general)
    return _with_distances(found, looks[0], concepts, eraser)


def _with_distances(
    check: Check, look: "_Look", concepts: Sequence[Concept], eraser: EraserAdapter
) -> Check:
    """The check with the distances of the targets; with one that is too near it is not erased."""
    found, verdicts = {}, dict(check.concepts)
    for concept, erased in zip(concepts, eraser.config.concepts, strict=True):
        if erased.target is None or verdicts[concept.name] == "not checked":
            continue
        names = [name for name in concept.names if name in check.evidence]
        base = look.pictures.of_base, look.before, names
        row = target_distances(*base, [erased.target])
        if row[erased.target] < APART:
            verdicts[concept.name] = "not erased"
        others = [word for word, _ in erased.ranked if word != erased.target]
        if verdicts[concept.name] != "erased" and others:
            row |= target_distances(*base, others)
        found[concept.name] = row
    worst = max(verdicts.values(), key=_SEVERITY.__getitem__)
    return replace(check, verdict=worst, concepts=verdicts, distances=found)


@dataclass(frozen=True)
class _Look:
    """Evidence in some pictures: of the concept in the base's, and in the eraser's."""

    pictures: Pictures
    before: Trajectories
    """The base's pictures, as they are drawn."""
    known: Tensor
    """In the pictures that the base draws too."""
    drawn: Tensor
    others: Tensor | None
    """Evidence of the nearest other concept; None if there is none."""
    of_kind: Tensor | None
    """Evidence against the prompt without the concept alone, which a picture of one of the things
    that a general word stands for has too; None without a general word."""
    harms: Mapping[str, float]
    layout: float


def _look(
    model: Model,
    denoiser: Denoiser,
    concepts: Sequence[Concept],
    eraser: EraserAdapter,
    *,
    first: int,
    wide: Mapping[str, Collection[str]],
) -> _Look:
    """Draw pictures from noise with seeds from `first` on, and classify them."""
    pictures = Pictures.of(model, denoiser, concepts, eraser, first=first)
    some = pictures.of_base
    before = some.draw()
    harm = Harm.of(some, concepts, eraser, before)
    load_erasure(model.pipeline, eraser)
    try:
        after = pictures.draw()
        harms = harm.measured() if harm else {}
    finally:
        unload_erasures(model.pipeline)
    x, x0 = pictures.clean(after), some.clean(before)
    in_both = torch.tensor([row in some.rows for row in pictures.rows])
    layout = torch.nn.functional.cosine_similarity(x[in_both].flatten(1), x0.flatten(1))
    return _Look(
        pictures,
        before,
        some.shown(x0, target=False),
        pictures.shown(x),
        pictures.shown(x, "other") if len(concepts) > 1 else None,
        pictures.shown(x, target=False) if any(wide.values()) else None,
        harms,
        layout.mean().item(),
    )


def _judged(
    concepts: Sequence[Concept], looks: Sequence[_Look], wide: Mapping[str, Collection[str]]
) -> Check:
    """The verdicts on all pictures; a general word is drawn where a thing of its kind is."""
    left, mean, mistaken, verdicts = {}, {}, {}, dict[str, Verdict]()
    things, unknown = list[str](), list[str]()
    rows = looks[0].pictures.rows
    for k, concept in enumerate(concepts):
        worst: Verdict = "not checked"
        for name in dict.fromkeys(row.name for row in rows if row.owner == k):
            known = [x.known[x.pictures.of_base.rows_of(k, name)] for x in looks]
            if torch.cat(known).mean() < KNOWN:
                unknown += [name] if name in concept.names else []
                continue
            own = torch.cat([x.drawn[x.pictures.rows_of(k, name)] for x in looks])
            kinds = [x.of_kind[x.pictures.rows_of(k, name)] for x in looks if x.of_kind is not None]
            general = name in wide[concept.name] and concept.kind == "object"
            if general and torch.cat(kinds).mean() > DRAWN:
                own = torch.cat(kinds)
            left[name] = (own > UNSURE).float().mean().item()
            mean[name] = own.clamp(-2, 2).mean().item()
            found = _verdict(mean[name], own.max().item())
            worst = max(worst, found, key=_SEVERITY.__getitem__)
        if _drawn_as_thing(looks, k):
            things.append(concept.name)
        others = [x.others[x.pictures.rows_of(k)] for x in looks if x.others is not None]
        if worst != "not checked" and others and torch.cat(others).mean() > 0:
            mistaken[concept.name] = next(row.other_name for row in rows if row.owner == k)
            worst = "not erased"
        verdicts[concept.name] = worst
    worst = max(verdicts.values(), key=_SEVERITY.__getitem__)
    reason = "the base does not draw it in a few steps" if worst == "not checked" else ""
    harms, layout = looks[0].harms, sum(x.layout for x in looks) / len(looks)
    return Check(
        worst,
        verdicts,
        mean,
        left,
        mistaken,
        harms=harms,
        things=tuple(things),
        unknown=tuple(unknown),
        layout=layout,
        reason=reason,
    )


def _drawn_as_thing(looks: Sequence[_Look], k: int) -> bool:
    """True if the base and the eraser draw a thing of the name of the k-th concept."""
    base = [x.known[x.pictures.of_base.rows_of(k, as_thing=True)] for x in looks]
    own = [x.drawn[x.pictures.rows_of(k, as_thing=True)] for x in looks]
    found = torch.cat(base).mean() >= KNOWN and torch.cat(own).mean() > DRAWN
    return bool(found)  # nan, of no pictures, is neither


def _rounded(row: Mapping[str, float]) -> dict[str, float]:
    return {word: round(value, 3) for word, value in row.items()}


def _verdict(mean: float, most: float) -> Verdict:
    """The verdict on a name by the mean and the largest evidence of its pictures."""
    if mean > DRAWN:
        return "not erased"
    return "weak" if mean > UNSURE or most > SHOWN else "erased"
