"""Pictures for the check of an eraser: drawn in a few steps, and classified by the base."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept, Kind, Prompt, kind_of
from diffusers_erase.concepts.candidates import parts_kept
from diffusers_erase.concepts.kinds import placed
from diffusers_erase.concepts.words import plural
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.diffusion_classifier import TIMES, evidence
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import unknown_words
from diffusers_erase.models.trajectories import Trajectories, sample_trajectories


PICTURES, OF_OTHER_NAMES = 3, 2
"""Pictures drawn under a concept's name, and under each of its synonyms and plurals; twice as many
of an attribute, a compound or a place, which are erased in some pictures and left in others."""

MOST_NAMES = 12
"""Names of a concept that are checked at most."""

WHOLE_THINGS: tuple[Kind, ...] = ("object", "style", "person")
"""Kinds that fill the picture."""

STEPS, GUIDANCE = 4, 5.0
"""DDIM steps and guidance scale of these pictures."""

COARSE = (0.65, 0.75, 0.85, 0.92)
"""Times at which attributes, compounds and places are classified: colours and places are decided
where there is more noise than where objects are."""

SAME = 0.1
"""Two prompts whose predictions differ by less than this share of the concept's guidance mean the
same to the model."""

WORDS, PARTS = 5, 3
"""Nearest words and prompts about parts of a compound on which harm is measured."""

HARM = 0.3
"""Relative squared change of a word's guidance from which on it counts as harmed."""

APART = 0.8
"""A target nearer to the concept than this, relative to the prompt without the concept, is drawn
like it in some pictures."""

_PREPOSITIONS = r"\s+(?:on|in|at|under|by|with|beside|near|of)\s+"


@dataclass(frozen=True)
class Row:
    """A picture: the prompt it is drawn with, and the prompts that it is compared with."""

    owner: int
    """Index of the concept."""
    name: str
    filled: Prompt
    concept: str
    """The prompt with the concept's first name."""
    absent: str
    """The prompt without the concept; for a compound, the prompt about its head."""
    target: str
    other: str
    """The prompt about the other erased concept that is nearest to the target, if there are any."""
    other_name: str
    seed: int
    """The seed of the noise; the base draws the pictures with even seeds too."""
    times: tuple[float, ...]
    """Shares of the training times at which the picture is classified."""
    as_thing: bool
    """Whether the prompt is about a thing of that name, though the concept is of another kind."""


@dataclass(frozen=True)
class Pictures:
    """Pictures to be drawn, with the text states of all their prompts."""

    model: Model
    denoiser: Denoiser
    rows: tuple[Row, ...]
    states: Mapping[str, Tensor]
    """Prompt -> text states, tokens x width."""

    @classmethod
    def of(
        cls,
        model: Model,
        denoiser: Denoiser,
        concepts: Sequence[Concept],
        eraser: EraserAdapter,
        *,
        first: int,
    ) -> "Pictures":
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
            times = TIMES if prompt.kind in WHOLE_THINGS else COARSE
            thing = prompt.kind != concepts[k].kind
            rows.append(Row(k, prompt.name, prompt, *compared, name, first + seed, times, thing))
        return cls(model, denoiser, tuple(rows), states)

    def of_prompts(self, texts: Sequence[str]) -> Tensor:
        """Their text states, P x tokens x width."""
        return torch.stack([self.states[text] for text in texts])

    def draw(self) -> Trajectories:
        """Runs of every row's prompt, by the model as it is now, each from its own noise."""
        return sample_trajectories(
            self.denoiser,
            self.model.pipeline.scheduler,
            self.of_prompts([row.filled.text for row in self.rows]),
            self.of_prompts([""]),
            guidance=GUIDANCE,
            steps=STEPS,
            seed=[row.seed for row in self.rows],
            batch=32,
        )

    @property
    def of_base(self) -> "Pictures":
        """The pictures that the base draws too: half of each name's, or all that are `COARSE`."""
        rows = (row for row in self.rows if row.seed % 2 == 0 or row.times == COARSE)
        return replace(self, rows=tuple(rows))

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
        longest = max(len(row.times) for row in self.rows)
        times = torch.tensor([(row.times * longest)[:longest] for row in self.rows])
        ratio, distance = evidence(self.denoiser, clean, a, others, times=times)
        same = distance < SAME * distance[:1]
        return ratio.where(~same, torch.inf).amin(0).where(~same.all(0), ratio[0])

    def rows_of(self, owner: int, name: str | None = None, *, as_thing: bool = False) -> Tensor:
        """Which pictures are of this concept, under this name if there is one."""
        found = [r.owner == owner and name in (None, r.name) for r in self.rows]
        return torch.tensor(found) & torch.tensor([r.as_thing == as_thing for r in self.rows])


def _prompts(tokenizer: Any, concept: Concept) -> list[tuple[int, Prompt]]:
    """Numbered prompts under the name, and fewer under synonyms and plurals that are known.

    And, for a kind that the name does not tell, of a thing of that name.
    """
    plurals = dict.fromkeys(plural(name) for name in concept.names if concept.kind == "object")
    known = [
        name for name in plurals if name not in concept.names and not unknown_words(tokenizer, name)
    ]
    alone, found = replace(concept, synonyms=()), list[tuple[int, Prompt]]()
    for name in [*concept.names, *known][:MOST_NAMES]:
        count = PICTURES if name == concept.name else OF_OTHER_NAMES
        count *= 1 if concept.kind in WHOLE_THINGS else 2
        prompts = alone.example_prompts(2 * count)[:count]  # the second half says more beside it
        found += [(seed, replace(prompt, name=name)) for seed, prompt in enumerate(prompts)]
    other = concept.kind in ("style", "attribute", "place") and placed(concept.name) != concept.name
    if other and kind_of(concept.name) == "object":
        prompts = Concept(concept.name, "object").example_prompts()[:OF_OTHER_NAMES]
        found += [(2 * i, prompt) for i, prompt in enumerate(prompts)]  # seeds of the base's too
    return found


def _words_within(concept: Concept) -> list[str]:
    """Things that a long name names: `car on the beach` a car, `old red car` old and red cars."""
    if concept.kind == "compound":
        attributes, head = concept.parts
        several = attributes.split()
        return [f"{word} {head}" for word in several] if len(several) > 1 else []
    thing = re.split(_PREPOSITIONS, concept.name, maxsplit=1)[0]
    return [thing] if concept.kind == "object" and thing != concept.name else []


def _absent(concept: Concept, prompt: Prompt) -> str:
    """The prompt without the concept; a red car is compared with a car."""
    return prompt.about(concept.parts[-1]) if concept.parts else prompt.without()


def _encoded(model: Model, texts: Sequence[str]) -> dict[str, Tensor]:
    chunks = [texts[start : start + 64] for start in range(0, len(texts), 64)]
    return dict(zip(texts, torch.cat([model.encode(chunk) for chunk in chunks]), strict=True))


def target_distances(
    pictures: Pictures, runs: Trajectories, names: Sequence[str], words: Sequence[str]
) -> dict[str, float]:
    """Min over names c of the mean |eps(k) - eps(c)|^2 / |eps("") - eps(c)|^2 for the words k.

    At the second and third latent of the base's `runs` of its pictures of them, where what is drawn
    is decided; eps("") is the prediction for the prompt without the concept.
    """
    rows = [i for i, row in enumerate(pictures.rows) if row.name in names and not row.as_thing]
    latents = _latents(runs)[rows].flatten()
    z, t, own = runs.z[latents], runs.t[latents], runs.scores["concept"][latents]
    prompts = [pictures.rows[i].filled for i in rows for _ in range(2)]
    texts = [p.about(word) for word in (None, *words) for p in prompts]
    known = _encoded(pictures.model, sorted({*texts}))
    states = torch.stack([known[text] for text in texts])
    count = 1 + len(words)
    found = _scores(pictures.denoiser, z.repeat(count, 1, 1, 1), t.repeat(count), states)
    squares = (found.unflatten(0, (count, -1)) - own).square().mean((2, 3, 4))
    ratios = squares[1:] / squares[0].clamp(min=1e-12)
    of_names = torch.tensor([[p.name == name for p in prompts] for name in names]).float()
    means = ratios.cpu() @ of_names.T / of_names.sum(1)
    return dict(zip(words, means.amin(1).tolist(), strict=True))


def _latents(runs: Trajectories) -> Tensor:
    """The rows of the second and the third latent of each run, runs x 2."""
    times = runs.t.unique()[[-2, -3]]
    return torch.stack([torch.nonzero(runs.t == t)[:, 0] for t in times], 1)


@dataclass(frozen=True)
class Harm:
    """Words near the concepts, with the base's predictions for them at a noisy latent."""

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
        pictures: Pictures,
        concepts: Sequence[Concept],
        eraser: EraserAdapter,
        runs: Trajectories,
    ) -> "Harm | None":
        """The nearest words are the candidates that were not chosen as targets."""
        asked: list[tuple[str, str, int]] = []  # word, prompt, row
        stay = {*parts_kept(concepts)}
        for k, (concept, erased) in enumerate(zip(concepts, eraser.config.concepts, strict=True)):
            row = int(pictures.rows_of(k).nonzero()[0])
            (prompt,) = concept.example_prompts(1)
            near = [word for word, _ in erased.ranked if word != erased.target][:WORDS]
            asked += [(word, prompt.about(word), row) for word in near]
            within = [
                w for w in _words_within(concept) if not any(c.is_named_in(w) for c in concepts)
            ]
            asked += [(word, prompt.about(word), row) for word in within]
            parts = [text for text in concept.kept_prompts() if text in stay]
            asked += [(text, text, row) for text in parts[:PARTS]]
        if not asked:
            return None
        words, prompts, rows = zip(*asked, strict=True)
        second = _latents(runs)[list(rows), 0]
        z, t, null = runs.z[second], runs.t[second], runs.scores["null"][second]
        known = _encoded(pictures.model, sorted({*prompts}))
        states = torch.stack([known[text] for text in prompts])
        before = _scores(pictures.denoiser, z, t, states)
        guidance = (before - null).square().mean((1, 2, 3))
        return cls(pictures.denoiser, words, z, t, states, before, guidance)

    def measured(self) -> dict[str, float]:
        """Word -> relative squared change of its guidance by the eraser that is loaded now."""
        after = _scores(self.denoiser, self.z, self.t, self.states)
        change = (after - self.before).square().mean((1, 2, 3))
        ratios = zip(self.words, (change / self.guidance).tolist(), strict=True)
        return {word: ratio for word, ratio in ratios if ratio > HARM}


def _scores(denoiser: Denoiser, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
    rows = torch.arange(len(z)).split(32)
    return torch.cat([denoiser.teacher(z[k], t[k], states[k]) for k in rows])
