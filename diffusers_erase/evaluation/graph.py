"""The concept graph: erase each concept, look at all of them (AGE, arXiv 2501.18950, section 3)."""

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
from diffusers_erase.evaluation.suites import PromptCase, read_yaml
from diffusers_erase.runtime.plugin import erasure_names, load_erasure, unload_erasures
from diffusers_erase.storage.results import key_of


Make = Callable[[Concept], EraserAdapter]
"""A way to make an eraser of a concept."""

ABNORMAL = 0.8
"""What the base draws less often than this is hurt by everything (AGE finds), and shown apart."""


@dataclass(frozen=True)
class ConceptSet:
    """The concepts of a graph, in families of near ones, and how each is asked for."""

    families: Mapping[str, tuple[str, ...]]
    templates: tuple[str, ...] = ("a photo of {a}",)
    pictures: int = 8
    """Of every concept, after every erasure."""

    def __post_init__(self) -> None:
        twice = [word for word in self.concepts if self.concepts.count(word) > 1]
        if len(self.concepts) < 2 or twice:
            raise ErasureError(
                "A concept graph needs two concepts or more, each in one family; "
                + (f"'{twice[0]}' is there twice." if twice else f"got {len(self.concepts)}.")
            )
        for template in self.templates:
            if template.count("{}") + template.count("{a}") != 1:
                raise ErasureError(f"The template {template!r} needs one '{{}}', for the concept.")
        if self.pictures < 1:
            raise ErasureError(f"A graph needs 1 picture or more of each; got {self.pictures}.")

    @classmethod
    def of(cls, protocol: Mapping[str, Any]) -> "ConceptSet":
        """From plain values: `families`, `template`, `pictures`.

        Raises:
            ErasureError: `families` is missing, or something is not what it should be.
        """
        families = protocol.get("families") if isinstance(protocol, Mapping) else None
        if not isinstance(families, Mapping) or not all(
            isinstance(words, Sequence) and not isinstance(words, str)
            for words in families.values()
        ):
            raise ErasureError(
                "A concept graph is a mapping with `families`: a name for each, and a list of its "
                f"concepts; got {families!r}."
            )
        template = protocol.get("template", "a photo of {a}")
        return cls(
            {str(name): tuple(map(str, words)) for name, words in families.items()},
            (template,) if isinstance(template, str) else tuple(template),
            protocol.get("pictures", 8),
        )

    @classmethod
    def read(cls, path: str | Path) -> "ConceptSet":
        """The same from a YAML file.

        Raises:
            ErasureError: as above, or it is no YAML.
        """
        content, _ = read_yaml(path)
        try:
            return cls.of(content)
        except ErasureError as error:
            raise ErasureError(f"'{path}': {error}") from error

    @property
    def concepts(self) -> tuple[str, ...]:
        """All of them, family by family."""
        return tuple(word for words in self.families.values() for word in words)

    def asked(self, seed: int = 0) -> list[PromptCase]:
        """Every concept in turn; a concept has the same prompts and seeds after every erasure."""
        return [
            PromptCase(
                word,
                filled(self.templates[i % len(self.templates)], word),
                (word,),
                seed + 1000 * k + i,
            )
            for k, word in enumerate(self.concepts)
            for i in range(self.pictures)
        ]


@dataclass(frozen=True)
class Graph:
    """What every erasure does to every concept."""

    families: Mapping[str, tuple[str, ...]]
    base: Mapping[str, Rate]
    erased: Mapping[str, Mapping[str, Rate]]
    """Erased concept -> concept looked at -> how often it is still drawn."""

    @property
    def concepts(self) -> tuple[str, ...]:
        """All of them, family by family."""
        return tuple(word for words in self.families.values() for word in words)

    @property
    def abnormal(self) -> tuple[str, ...]:
        """Concepts that the base draws badly: excluded from averages."""
        return tuple(w for w in self.concepts if self.base[w].value < ABNORMAL)

    def damage(self, erased: str, word: str) -> float:
        """Δ = base rate - rate after the erasure: positive where it hurts."""
        return self.base[word].value - self.erased[erased][word].value

    def certain(self, erased: str, word: str) -> bool:
        """Whether the 95 % interval of the damage excludes nothing having happened."""
        low, high = difference(self.base[word], self.erased[erased][word])
        return not low <= 0 <= high

    def pairs(self) -> list[tuple[str, str]]:
        """(erased, other) of all that the base draws well."""
        fine = [w for w in self.concepts if w not in self.abnormal]
        return [(e, w) for e in fine if e in self.erased for w in fine if w != e]

    def family_of(self, word: str) -> str:
        """The family it is in."""
        return next(name for name, words in self.families.items() if word in words)

    def mean_damage(self, *, within: bool) -> float | None:
        """Over pairs of one family, or of two."""
        same = [p for p in self.pairs() if (self.family_of(p[0]) == self.family_of(p[1])) == within]
        return _mean([self.damage(*pair) for pair in same])

    def locality(self, likeness: Mapping[str, Mapping[str, float]]) -> float | None:
        """Spearman's ρ of likeness and damage over all pairs: 1 if what is alike is hurt most.

        None if it is not defined, as where nothing is hurt.
        """
        pairs = self.pairs()
        return spearman([likeness[e][w] for e, w in pairs], [self.damage(*p) for p in pairs])

    def far_damage(self, likeness: Mapping[str, Mapping[str, float]]) -> float | None:
        """Mean damage over the third of pairs that are least alike: destruction, if it is large."""
        pairs = sorted(self.pairs(), key=lambda pair: likeness[pair[0]][pair[1]])
        return _mean([self.damage(*pair) for pair in pairs[: max(1, len(pairs) // 3)]])

    @property
    def asymmetry(self) -> float | None:
        """Σ |Δ_ij - Δ_ji| / Σ (|Δ_ij| + |Δ_ji|): 0 if harm is mutual, 1 if it goes one way.

        Over pairs in which one is certain; of nothing but chance it is not defined.
        """
        both = [
            (e, w)
            for e, w in self.pairs()
            if w in self.erased and e < w and (self.certain(e, w) or self.certain(w, e))
        ]
        there, back = ([self.damage(*p) for p in ps] for ps in (both, [(w, e) for e, w in both]))
        total = sum(abs(a) + abs(b) for a, b in zip(there, back, strict=True))
        apart = sum(abs(a - b) for a, b in zip(there, back, strict=True))
        return apart / total if total else None

    @property
    def density(self) -> float | None:
        """Share of pairs with certain harm: how sparse the graph is."""
        pairs = self.pairs()
        return _mean([float(self.certain(*p) and self.damage(*p) > 0) for p in pairs])

    def hurt_by_all(self, least: float = 0.1) -> dict[str, float]:
        """Concepts that the erasures of other families hurt by `least` on average, and how much."""
        found = {}
        for word in self.concepts:
            far = [e for e in self.erased if self.family_of(e) != self.family_of(word)]
            mean = _mean([self.damage(e, word) for e in far])
            if mean is not None and mean >= least:
                found[word] = mean
        return found

    def by_family(self) -> dict[str, float]:
        """Mean damage of each family's members to one another."""
        pairs = {
            name: [p for p in self.pairs() if p[0] in words and p[1] in words]
            for name, words in self.families.items()
        }
        means = {name: _mean([self.damage(*p) for p in own]) for name, own in pairs.items()}
        return {name: mean for name, mean in means.items() if mean is not None}

    def one_way(self, least: float = 0.75, back: float = 0.125) -> list[tuple[str, str]]:
        """Pairs in which the erasure of the first harms the second by `least`, and not so back."""
        return [
            (e, w)
            for e, w in self.pairs()
            if w in self.erased and self.damage(e, w) >= least and self.damage(w, e) <= back
        ]

    def plain(self, likeness: Mapping[str, Mapping[str, float]] | None = None) -> dict[str, Any]:
        """For JSON."""
        erased = {e: self.erased[e][e] for e in self.erased if measurable(self.base[e])}
        told: dict[str, Any] = {
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
            told["locality"] = self.locality(likeness)
            told["far_damage"] = self.far_damage(likeness)
        return {
            **told,
            "families": {name: list(words) for name, words in self.families.items()},
            "base": {word: [rate.hits, rate.n] for word, rate in self.base.items()},
            "erased": {
                e: {word: [rate.hits, rate.n] for word, rate in row.items()}
                for e, row in self.erased.items()
            },
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Graph":
        """The inverse of `plain`."""
        return cls(
            {name: tuple(words) for name, words in plain["families"].items()},
            {word: Rate(*rate) for word, rate in plain["base"].items()},
            {
                e: {word: Rate(*rate) for word, rate in row.items()}
                for e, row in plain["erased"].items()
            },
        )

    def csv(self) -> str:
        """One line per pair: erased, looked at, families, base and erased hits and pictures."""
        lines = ["erased,erased_family,concept,family,base_hits,base_n,hits,n,damage"]
        for erased, row in self.erased.items():
            for word, rate in row.items():
                before = self.base[word]
                place = erased, self.family_of(erased), word, self.family_of(word)
                counts = before.hits, before.n, rate.hits, rate.n
                damage = round(self.damage(erased, word), 4)
                lines.append(",".join(map(str, (*place, *counts, damage))))
        return "\n".join(lines) + "\n"


def concept_graph(
    runner: Runner,
    field: ConceptSet,
    make: Make,
    *,
    concepts: Sequence[Concept] = (),
    way: str = "",
    seed: int = 0,
) -> Graph:
    """Erase one concept after the other, each on the bare base, and look at all.

    A run with a work folder goes on where it was killed: erasers that were made and pictures that
    were judged are not made again. Accelerate's processes share the pictures.

    Args:
        runner: with a pipeline that nothing is erased from.
        field: the concepts that are looked at.
        make: the way an eraser is made.
        concepts: those to erase, with synonyms if they have some; all of the field if empty.
        way: everything that `make` depends on beside the concept and the pipeline, in words; an
            eraser in the work folder that was made in another way is not taken for this one.
        seed: of the pictures.

    Raises:
        ErasureError: the pipeline has erasers, or a concept is not in the field.
    """
    pipe = runner.sampler.pipe
    check_nothing_erased(pipe)
    several = concepts or [Concept(word) for word in field.concepts]
    foreign = [c.name for c in several if c.name not in field.concepts]
    if foreign:
        raise ErasureError(f"The graph has no concept {foreign[0]!r}; add it to a family.")
    asked = field.asked(seed)
    base = rates(runner, asked, "base")
    erased = {}
    for k, concept in enumerate(several):
        load_erasure(pipe, _made(runner, make, concept, way))
        try:
            quiet = replace(runner, title=f"{k + 1}/{len(several)} {concept.name}")
            erased[concept.name] = rates(quiet, asked, "erased")
        finally:
            unload_erasures(pipe)
    return Graph(field.families, base, erased)


def check_nothing_erased(pipe: Any) -> None:
    """Refuse a pipeline with erasers, where these would be mixed up with those to be looked at."""
    if erasure_names(pipe):
        raise ErasureError(
            "The pipeline has erasers loaded; call `pipe.unload_erasures()`: they are loaded here, "
            "on the bare base."
        )


def rates(runner: Runner, asked: Sequence[PromptCase], side: Side) -> dict[str, Rate]:
    """Group -> how often it was seen."""
    found: dict[str, Rate] = {}
    for look in replace(runner, shown=0)(asked, side):
        found[look.group] = found.get(look.group, Rate(0, 0)) + Rate(int(look.hit), 1)
    return found


def _made(runner: Runner, make: Make, concept: Concept, way: str) -> EraserAdapter:
    """The eraser, from the work folder if it was made there before, in this way of this base."""
    if runner.work is None:
        return make(concept)
    key = key_of(concept=repr(concept), way=way, base=base_digest(runner.sampler.pipe))
    folder = runner.work / "erasers" / f"{concept.name.replace(' ', '-')}-{key[:8]}"
    if runner.main and not (folder / CONFIG_NAME).is_file():
        make(concept).save_pretrained(folder)
    if runner.accelerator is not None:
        runner.accelerator.wait_for_everyone()
    return EraserAdapter.from_pretrained(folder)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
