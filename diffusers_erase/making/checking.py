"""The check of a new eraser: does the base model still see the concept in what is drawn?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept, Prompt
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.diffusion_classifier import TIMES, evidence
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import unknown_words
from diffusers_erase.models.trajectories import Trajectories, sample_trajectories
from diffusers_erase.runtime.plugin import load_erasure, unload_erasures


Verdict = Literal["erased", "weak", "not erased", "not checked"]

PICTURES, OF_OTHER_NAMES = 4, 2
"""Pictures drawn under a concept's name, and under each of its synonyms and plurals."""

MOST_NAMES = 12
"""Names of a concept that are checked at most."""

STEPS, GUIDANCE = 4, 5.0
"""DDIM steps and guidance scale of these pictures."""

DRAWN, UNSURE = -0.2, -0.85
"""Mean evidence above which a concept is not erased, and above which it is weakly erased. Pictures
with more than `UNSURE` may still show it."""

COARSE = (0.65, 0.85)
"""Times at which attributes, compounds and places are classified: colours and places are decided
where there is more noise than where objects are."""

KNOWN = 0.3
"""Mean evidence from which on the base itself is taken to draw a name."""

SAME = 0.1
"""Two prompts whose predictions differ by less than this share of the concept's guidance mean the
same to the model."""

WORDS, PARTS, LATENTS = 5, 3, 2
"""Nearest words and prompts about parts of a compound on which harm is measured; latents for each.
"""

HARM = 0.3
"""Relative squared change of a word's guidance from which on it counts as harmed."""


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
    harms: Mapping[str, float] = field(default_factory=dict)
    """Near word -> relative squared change of its guidance, where that is above `HARM`."""
    layout: float | None = None
    """Mean correlation of erased and base latents from the same noise."""
    reason: str = ""
    """Why nothing was checked."""

    def to_dict(self) -> dict[str, Any]:
        """For the results in the config."""
        numbers = {"left": self.left, "evidence": self.evidence, "harms": self.harms}
        rounded = {k: {w: round(x, 3) for w, x in row.items()} for k, row in numbers.items()}
        return {
            "verdict": self.verdict,
            "concepts": dict(self.concepts),
            **rounded,
            **({"mistaken": dict(self.mistaken)} if self.mistaken else {}),
            **({} if self.layout is None else {"layout kept": round(self.layout, 3)}),
            **({"reason": self.reason} if self.reason else {}),
        }

    @property
    def failed(self) -> list[str]:
        """The concepts that are not erased, or weakly."""
        return [name for name, verdict in self.concepts.items() if _SEVERITY[verdict] > 1]

    @property
    def badness(self) -> tuple[int, float]:
        """A number that is lower the better the concepts are erased: severity, then evidence."""
        return _SEVERITY[self.verdict], max(self.evidence.values(), default=0.0)

    def sentences(self) -> list[str]:
        """What is left, what is drawn for another concept, and what is harmed, for people."""
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
        if self.harms:
            words = ", ".join(f"{word!r} ({value:.2f})" for word, value in self.harms.items())
            found.append(f"it changes near words: {words}")
        return found


_SEVERITY: dict[Verdict, int] = {"not checked": 0, "erased": 1, "weak": 2, "not erased": 3}


@dataclass(frozen=True)
class _Row:
    """A picture: the prompt it is drawn with, and the prompts that it is compared with."""

    owner: int
    """Index of the concept."""
    name: str
    prompt: str
    concept: str
    """The prompt with the concept's first name."""
    absent: str
    """The prompt without the concept; for a compound, the prompt about its head."""
    target: str
    other: str
    """The prompt about the other erased concept that is nearest to the target, if there are any."""
    other_name: str
    seed: int
    """Of the noise; pictures of each name are numbered from 0."""
    times: tuple[float, ...]
    """Shares of the training times at which the picture is classified."""


@torch.no_grad()
def check_eraser(model: Model, concepts: Sequence[Concept], eraser: EraserAdapter) -> Check:
    """Draw the concepts with the eraser in a few steps, and ask the base what the pictures show.

    A picture shows the concept if its prompt explains it better than the prompt without the concept
    does, and better than the prompt about the target (`models.diffusion_classifier.evidence`).
    Names that the base itself does not draw are left out. A concept takes some 120 UNet
    evaluations; the model is the base again afterwards.
    """
    try:
        denoiser = model.noise_predictor()
    except ErasureError as error:
        return Check("not checked", reason=str(error))
    pictures = _Pictures.of(model, denoiser, concepts, eraser)
    some = pictures.every_other
    before = some.draw()
    harm = _Harm.of(some, concepts, eraser, before)
    load_erasure(model.pipeline, eraser)
    try:
        after = pictures.draw()
        harms = harm.measured() if harm else {}
    finally:
        unload_erasures(model.pipeline)
    return _judged(pictures, some, concepts, before, after, harms)


@dataclass(frozen=True)
class _Pictures:
    model: Model
    denoiser: Denoiser
    rows: tuple[_Row, ...]
    states: Mapping[str, Tensor]
    """Prompt -> text states, tokens x width."""

    @classmethod
    def of(
        cls, model: Model, denoiser: Denoiser, concepts: Sequence[Concept], eraser: EraserAdapter
    ) -> "_Pictures":
        """Rows of all concepts, with the states of their prompts."""
        targets = [erased.target for erased in eraser.config.concepts]
        numbered = [(k, *p) for k, c in enumerate(concepts) for p in _prompts(model.tokenizer, c)]
        prompts = [(k, prompt) for k, _, prompt in numbered]
        texts = {text for k, p in prompts for text in (p.text, p.about(targets[k]), "")}
        texts |= {_absent(concepts[k], p) for k, p in prompts}
        texts |= {p.about(concepts[k].name) for k, p in prompts}
        texts |= {p.about(other.name) for _, p in prompts for other in concepts}
        states = _encoded(model, sorted(texts))
        rows = []
        for k, seed, prompt in numbered:
            target = prompt.about(targets[k])
            own, absent = prompt.about(concepts[k].name), _absent(concepts[k], prompt)
            apart = {
                c.name: (states[prompt.about(c.name)] - states[target]).norm().item()
                for j, c in enumerate(concepts)
                if j != k
            }
            name = min(apart, key=apart.__getitem__, default=concepts[k].name)
            compared = (own, absent, target, prompt.about(name))
            times = TIMES if concepts[k].kind in ("object", "style", "person") else COARSE
            rows.append(_Row(k, prompt.name, prompt.text, *compared, name, seed, times))
        return cls(model, denoiser, tuple(rows), states)

    def of_prompts(self, texts: Sequence[str]) -> Tensor:
        """Their text states, P x tokens x width."""
        return torch.stack([self.states[text] for text in texts])

    def draw(self) -> Trajectories:
        """Runs of every row's prompt, by the model as it is now, each from its own noise."""
        return sample_trajectories(
            self.denoiser,
            self.model.pipeline.scheduler,
            self.of_prompts([row.prompt for row in self.rows]),
            self.of_prompts([""]),
            guidance=GUIDANCE,
            steps=STEPS,
            seed=[row.seed for row in self.rows],
            batch=32,
        )

    @property
    def every_other(self) -> "_Pictures":
        """Half of the pictures of each name."""
        return replace(self, rows=tuple(row for row in self.rows if row.seed % 2 == 0))

    def clean(self, runs: Trajectories) -> Tensor:
        """The latents of the pictures at the end of the runs."""
        last = runs.t == runs.t.min()
        null, concept = runs.scores["null"][last], runs.scores["concept"][last]
        output = null + GUIDANCE * (concept - null)
        return self.denoiser.schedule.clean(output, runs.z[last], runs.t[last])

    def shown(self, clean: Tensor, prompt: str = "concept", *, target: bool = True) -> Tensor:
        """Evidence that each picture shows what this prompt of its row says."""
        targets = target and any(row.target != row.absent for row in self.rows)
        names = ("absent", "target") if targets else ("absent",)
        a, *others = (
            self.of_prompts([getattr(row, name) for row in self.rows]) for name in (prompt, *names)
        )
        times = torch.tensor([row.times for row in self.rows])
        ratio, distance = evidence(self.denoiser, clean, a, others, times=times)
        same = distance < SAME * distance[:1]
        return ratio.where(~same, torch.inf).amin(0).where(~same.all(0), ratio[0])

    def rows_of(self, owner: int, name: str | None = None) -> Tensor:
        """Which pictures are of this concept, under this name if there is one."""
        return torch.tensor([r.owner == owner and name in (None, r.name) for r in self.rows])


def _judged(
    pictures: _Pictures,
    some: _Pictures,
    concepts: Sequence[Concept],
    before: Trajectories,
    after: Trajectories,
    harms: Mapping[str, float],
) -> Check:
    """The verdicts on the pictures, `some` of which were drawn by the base too."""
    x, x0 = pictures.clean(after), some.clean(before)
    known, drawn = some.shown(x0, target=False), pictures.shown(x)
    others = pictures.shown(x, "other") if len(concepts) > 1 else None
    left, mean, mistaken, verdicts = {}, {}, {}, dict[str, Verdict]()
    for k, concept in enumerate(concepts):
        worst: Verdict = "not checked"
        for name in dict.fromkeys(row.name for row in pictures.rows if row.owner == k):
            if known[some.rows_of(k, name)].mean() < KNOWN:
                continue
            own = drawn[pictures.rows_of(k, name)]
            left[name] = (own > UNSURE).float().mean().item()
            mean[name] = own.clamp(-2, 2).mean().item()
            worst = max(worst, _verdict(mean[name]), key=_SEVERITY.__getitem__)
        own = pictures.rows_of(k)
        if others is not None and others[own].mean() > 0 and worst != "not checked":
            mistaken[concept.name] = next(r.other_name for r in pictures.rows if r.owner == k)
            worst = "not erased"
        verdicts[concept.name] = worst
    drawn_twice = torch.tensor([row in some.rows for row in pictures.rows])
    layout = torch.nn.functional.cosine_similarity(x[drawn_twice].flatten(1), x0.flatten(1))
    worst = max(verdicts.values(), key=_SEVERITY.__getitem__)
    reason = "the base does not draw it by these names" if worst == "not checked" else ""
    return Check(worst, verdicts, mean, left, mistaken, harms, layout.mean().item(), reason)


def _verdict(mean: float) -> Verdict:
    if mean > DRAWN:
        return "not erased"
    return "weak" if mean > UNSURE else "erased"


def _prompts(tokenizer: Any, concept: Concept) -> list[tuple[int, Prompt]]:
    """Numbered prompts under the name, and fewer under synonyms and plurals that are known."""
    plurals = [f"{name}s" for name in concept.names if concept.kind == "object"]
    known = [name for name in plurals if not unknown_words(tokenizer, name)]
    alone, found = replace(concept, synonyms=()), list[tuple[int, Prompt]]()
    for name in [*concept.names, *known][:MOST_NAMES]:
        count = PICTURES if name == concept.name else OF_OTHER_NAMES
        prompts = enumerate(alone.example_prompts(count))
        found += [(seed, replace(prompt, name=name)) for seed, prompt in prompts]
    return found


def _absent(concept: Concept, prompt: Prompt) -> str:
    """The prompt without the concept; a red car is compared with a car."""
    return prompt.about(concept.parts[-1]) if concept.parts else prompt.without()


def _encoded(model: Model, texts: Sequence[str]) -> dict[str, Tensor]:
    chunks = [texts[start : start + 64] for start in range(0, len(texts), 64)]
    return dict(zip(texts, torch.cat([model.encode(chunk) for chunk in chunks]), strict=True))


@dataclass(frozen=True)
class _Harm:
    """Words near the concepts, with the base's predictions for them at noisy latents."""

    denoiser: Denoiser
    words: tuple[str, ...]
    z: Tensor
    t: Tensor
    states: Tensor
    before: Tensor
    guidance: Tensor
    """Mean square of the base's guidance by each word."""

    @classmethod
    def of(
        cls,
        pictures: _Pictures,
        concepts: Sequence[Concept],
        eraser: EraserAdapter,
        runs: Trajectories,
    ) -> "_Harm | None":
        """The nearest words are the candidates that were not chosen as targets."""
        asked: list[tuple[str, str, str, int]] = []  # word, prompt, prompt without it, row
        second = runs.t == runs.t.unique()[-2]
        for k, (concept, erased) in enumerate(zip(concepts, eraser.config.concepts, strict=True)):
            near = [word for word, _ in erased.ranked if word != erased.target][:WORDS]
            own = pictures.rows_of(k).nonzero()[:LATENTS, 0].tolist()
            prompts = concept.example_prompts(len(own))
            for i, p in zip(own, prompts, strict=True):
                asked += [(word, p.about(word), p.without(), i) for word in near]
                asked += [(text, text, "", i) for text in concept.kept_prompts()[:PARTS]]
        if not asked:
            return None
        words, named, absent, rows = zip(*asked, strict=True)
        z, t = runs.z[second][list(rows)], runs.t[second][list(rows)]
        known = _encoded(pictures.model, sorted({*named, *absent}))
        states = torch.stack([known[text] for text in named])
        without = torch.stack([known[text] for text in absent])
        before = _scores(pictures.denoiser, z, t, states)
        guidance = (before - _scores(pictures.denoiser, z, t, without)).square().mean((1, 2, 3))
        return cls(pictures.denoiser, words, z, t, states, before, guidance)

    def measured(self) -> dict[str, float]:
        """Word -> relative squared change of its guidance by the eraser that is loaded now."""
        after = _scores(self.denoiser, self.z, self.t, self.states)
        change = (after - self.before).square().mean((1, 2, 3))
        found = {}
        for word in dict.fromkeys(self.words):
            own = torch.tensor([each == word for each in self.words])
            found[word] = (change[own].sum() / self.guidance[own].sum()).item()
        return {word: value for word, value in found.items() if value > HARM}


def _scores(denoiser: Denoiser, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
    rows = torch.arange(len(z)).split(32)
    return torch.cat([denoiser.teacher(z[k], t[k], states[k]) for k in rows])
