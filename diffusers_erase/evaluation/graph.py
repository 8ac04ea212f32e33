"""The concept graph: erase each concept, measure all of them (AGE, arXiv 2501.18950, section 3)."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers_erase.concepts import Concept, filled
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import CONFIG_NAME
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import measurable
from diffusers_erase.evaluation.metrics import Rate, difference, spearman
from diffusers_erase.evaluation.runner import Runner, Side
from diffusers_erase.evaluation.sampler import base_digest
from diffusers_erase.evaluation.suites import PromptCase, ProtocolReader, read_yaml
from diffusers_erase.models.model import Pipeline
from diffusers_erase.runtime.plugin import erasure_names, load_erasure, unload_erasures
from diffusers_erase.storage.atomic import slug
from diffusers_erase.storage.results import key_of


MakeEraser = Callable[[Concept], EraserAdapter]
"""Makes an eraser of a concept."""

Likeness = Mapping[str, Mapping[str, float]]
"""Concept -> concept -> how alike they are, 0 .. 1."""

ABNORMAL = 0.8
"""Concepts that the base model draws less often than this are excluded from averages: AGE finds
that every erasure harms them."""


@dataclass(frozen=True)
class ConceptSet:
    """The concepts of a graph, in families of similar ones, and the templates of their prompts."""

    families: Mapping[str, tuple[str, ...]]
    templates: tuple[str, ...] = ("a photo of {a}",)
    """Prompts with `{}` for the concept, or `{a}` for it with an article; they take turns."""
    pictures: int = 8
    """Pictures of each concept after each erasure."""

    def __post_init__(self) -> None:
        repeated = [name for name in self.names if self.names.count(name) > 1]
        if len(self.names) < 2 or repeated:
            raise ErasureError(
                "A concept graph needs two concepts or more, each in one family; "
                + (f"'{repeated[0]}' is named twice." if repeated else f"got {len(self.names)}.")
            )
        for template in self.templates:
            if template.count("{}") + template.count("{a}") != 1:
                raise ErasureError(f"The template {template!r} needs one '{{}}', for the concept.")
        if self.pictures < 1:
            raise ErasureError(f"A graph needs 1 picture or more of each; got {self.pictures}.")

    @classmethod
    def of(cls, protocol: Mapping[str, Any]) -> "ConceptSet":
        """The concepts of a mapping with `families`, and perhaps `template` and `pictures`.

        Raises:
            ErasureError: `families` is missing, or a value is of the wrong kind.
        """
        return cls._from(ProtocolReader(protocol, {}, "the protocol"))

    @classmethod
    def read(cls, path: str | Path) -> "ConceptSet":
        """The concepts of a YAML file."""
        return cls._from(ProtocolReader(*read_yaml(path), f"'{path}'"))

    @classmethod
    def _from(cls, reader: ProtocolReader) -> "ConceptSet":
        top = reader.mapping(reader.content, (), needed=["families"])
        families = reader.mapping(top["families"], ("families",))
        return cls(
            {str(name): reader.texts(x, ("families", name)) for name, x in families.items()},
            reader.texts(top.get("template", "a photo of {a}"), ("template",)),
            reader.count(top.get("pictures", 8), ("pictures",)),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All concepts, family by family."""
        return tuple(name for names in self.families.values() for name in names)

    def cases(self, seed: int = 0) -> list[PromptCase]:
        """`pictures` cases per concept, with the same prompts and seeds after every erasure."""
        return [
            PromptCase(
                name,
                filled(self.templates[i % len(self.templates)], name),
                (name,),
                seed + 1000 * k + i,
            )
            for k, name in enumerate(self.names)
            for i in range(self.pictures)
        ]


@dataclass(frozen=True)
class Graph:
    """The rate of every concept after the erasure of every concept."""

    families: Mapping[str, tuple[str, ...]]
    base: Mapping[str, Rate]
    erased: Mapping[str, Mapping[str, Rate]]
    """Erased concept -> measured concept -> rate."""

    @property
    def concepts(self) -> tuple[str, ...]:
        """All concepts, family by family."""
        return tuple(name for names in self.families.values() for name in names)

    @property
    def abnormal(self) -> tuple[str, ...]:
        """Concepts that the base model draws too rarely (`ABNORMAL`); averages exclude them."""
        return tuple(w for w in self.concepts if self.base[w].value < ABNORMAL)

    def damage(self, erased: str, word: str) -> float:
        """Δ = base rate - rate after the erasure; positive if the erasure harms the concept."""
        return self.base[word].value - self.erased[erased][word].value

    def certain(self, erased: str, word: str) -> bool:
        """True if the 95 % interval of the damage excludes 0."""
        low, high = difference(self.base[word], self.erased[erased][word])
        return not low <= 0 <= high

    def pairs(self) -> list[tuple[str, str]]:
        """(erased, other) for all concepts but the abnormal ones."""
        fine = [w for w in self.concepts if w not in self.abnormal]
        return [(e, w) for e in fine if e in self.erased for w in fine if w != e]

    def family_of(self, word: str) -> str:
        """The name of the concept's family."""
        return next(name for name, words in self.families.items() if word in words)

    def mean_damage(self, *, within: bool) -> float | None:
        """Mean damage over the pairs within one family, or over those of two families."""
        same = [p for p in self.pairs() if (self.family_of(p[0]) == self.family_of(p[1])) == within]
        return _mean([self.damage(*pair) for pair in same])

    def locality(self, likeness: Likeness) -> float | None:
        """Spearman's ρ of likeness and damage over all pairs: 1 if the most alike is harmed most.

        None if it is not defined, for example without any damage.
        """
        pairs = self.pairs()
        return spearman([likeness[e][w] for e, w in pairs], [self.damage(*p) for p in pairs])

    def far_damage(self, likeness: Likeness) -> float | None:
        """Mean damage over the third of the pairs that is least alike."""
        pairs = sorted(self.pairs(), key=lambda pair: likeness[pair[0]][pair[1]])
        return _mean([self.damage(*pair) for pair in pairs[: max(1, len(pairs) // 3)]])

    @property
    def asymmetry(self) -> float | None:
        """Σ |Δ_ij - Δ_ji| / Σ (|Δ_ij| + |Δ_ji|): 0 if damage is mutual, 1 if it is one-way.

        Over pairs with certain damage in one direction or both; None if there are none.
        """
        both = [
            (e, w)
            for e, w in self.pairs()
            if w in self.erased and e < w and (self.certain(e, w) or self.certain(w, e))
        ]
        damages = [(self.damage(e, w), self.damage(w, e)) for e, w in both]
        total = sum(abs(a) + abs(b) for a, b in damages)
        return sum(abs(a - b) for a, b in damages) / total if total else None

    @property
    def density(self) -> float | None:
        """Share of pairs with certain damage."""
        pairs = self.pairs()
        return _mean([float(self.certain(*p) and self.damage(*p) > 0) for p in pairs])

    def hurt_by_all(self, least: float = 0.1) -> dict[str, float]:
        """Concept -> its mean damage by erasures in other families, if that is `least` or more."""
        found = {}
        for word in self.concepts:
            far = [e for e in self.erased if self.family_of(e) != self.family_of(word)]
            mean = _mean([self.damage(e, word) for e in far])
            if mean is not None and mean >= least:
                found[word] = mean
        return found

    def by_family(self) -> dict[str, float]:
        """Family -> mean damage of its members to one another."""
        pairs = {
            name: [p for p in self.pairs() if p[0] in words and p[1] in words]
            for name, words in self.families.items()
        }
        means = {name: _mean([self.damage(*p) for p in own]) for name, own in pairs.items()}
        return {name: mean for name, mean in means.items() if mean is not None}

    def one_way(self, least: float = 0.75, back: float = 0.125) -> list[tuple[str, str]]:
        """Pairs (i, j) with Δ_ij of `least` or more and Δ_ji of `back` or less."""
        return [
            (e, w)
            for e, w in self.pairs()
            if w in self.erased and self.damage(e, w) >= least and self.damage(w, e) <= back
        ]

    def to_dict(self, likeness: Likeness | None = None) -> dict[str, Any]:
        """For JSON."""
        erased = {e: self.erased[e][e] for e in self.erased if measurable(self.base[e])}
        summary: dict[str, Any] = {
            "efficacy": _mean([rate.value for rate in erased.values()]),
            "within_families": self.mean_damage(within=True),
            "between_families": self.mean_damage(within=False),
            "density": self.density,
            "asymmetry": self.asymmetry,
            "abnormal": list(self.abnormal),
            "hurt_by_all": self.hurt_by_all(),
            "by_family": self.by_family(),
            "one_way": [list(pair) for pair in self.one_way()],
        }
        if likeness is not None:
            summary["locality"] = self.locality(likeness)
            summary["far_damage"] = self.far_damage(likeness)
        return {
            **summary,
            "families": {name: list(words) for name, words in self.families.items()},
            "base": {word: [rate.hits, rate.n] for word, rate in self.base.items()},
            "erased": {
                e: {word: [rate.hits, rate.n] for word, rate in row.items()}
                for e, row in self.erased.items()
            },
        }

    def csv(self) -> str:
        """One line per pair of concepts: families, hits and pictures before and after, damage."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        counts = ("base_hits", "base_n", "hits", "n", "damage")
        table.writerow(("erased", "erased_family", "concept", "family", *counts))
        for erased, row in self.erased.items():
            for word, rate in row.items():
                names = erased, self.family_of(erased), word, self.family_of(word)
                before, damage = self.base[word], round(self.damage(erased, word), 4)
                table.writerow((*names, before.hits, before.n, rate.hits, rate.n, damage))
        return text.getvalue()


def concept_graph(
    runner: Runner,
    concepts: ConceptSet,
    make: MakeEraser,
    *,
    erase: Sequence[Concept] = (),
    way: str = "",
    seed: int = 0,
) -> Graph:
    """Erase the concepts one by one, each from the base model, and measure all after each.

    A run with a work folder resumes where it was stopped: stored erasers and verdicts are not made
    again. Accelerate's processes share the pictures.

    `erase` are the concepts to erase, perhaps with synonyms; all of `concepts` if empty. `way` is a
    text for everything that `make` depends on besides the concept and the pipeline; a stored eraser
    is reused for an equal one only.

    Raises:
        ErasureError: the pipeline has erasers, or a concept to erase is not among the concepts.
    """
    pipe = runner.sampler.pipe
    require_no_erasers(pipe)
    erase = erase or [Concept(name) for name in concepts.names]
    if foreign := [c.name for c in erase if c.name not in concepts.names]:
        raise ErasureError(f"The graph has no concept {foreign[0]!r}; add it to a family.")
    cases = concepts.cases(seed)
    base, erased = rates(runner, cases, "base"), {}
    for k, concept in enumerate(erase):
        load_erasure(pipe, _eraser(runner, make, concept, way))
        try:
            titled = replace(runner, title=f"{k + 1}/{len(erase)} {concept.name}")
            erased[concept.name] = rates(titled, cases, "erased")
        finally:
            unload_erasures(pipe)
    return Graph(concepts.families, base, erased)


def require_no_erasers(pipe: Pipeline) -> None:
    """Raise if the pipeline has erasers, which would be measured together with the others."""
    if erasure_names(pipe):
        raise ErasureError(
            "The pipeline has erasers loaded, and each eraser is to be measured on the base model; "
            "call `pipe.unload_erasures()` first."
        )


def rates(runner: Runner, cases: Sequence[PromptCase], side: Side) -> dict[str, Rate]:
    """Group -> rate of its pictures that are hits."""
    found: dict[str, Rate] = {}
    for judgement in replace(runner, shown=0)(cases, side):
        rate = Rate(int(judgement.hit), 1)
        found[judgement.group] = found.get(judgement.group, Rate(0, 0)) + rate
    return found


def _eraser(runner: Runner, make: MakeEraser, concept: Concept, way: str) -> EraserAdapter:
    """The eraser of the work folder, made there first if it is missing."""
    if runner.work is None:
        return make(concept)
    key = key_of(concept=repr(concept), way=way, base=base_digest(runner.sampler.pipe))
    folder = runner.work / "erasers" / f"{slug(concept.name)}-{key[:8]}"
    if runner.main and not (folder / CONFIG_NAME).is_file():
        make(concept).save_pretrained(folder)
    if runner.accelerator is not None:
        runner.accelerator.wait_for_everyone()
    return EraserAdapter.from_pretrained(folder)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
