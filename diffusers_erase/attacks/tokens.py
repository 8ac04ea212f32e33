"""Token search: a few tokens before the prompt, found by gradients, that bring the concept back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusers_erase.attacks.attack_run import (
    SEARCHED,
    AttackRun,
    another,
    as_base,
    batches,
    drawn_from,
    originals,
    recorded,
)
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Access, Attempt
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.denoising_loss import (
    denoising_loss,
    latents_of,
    noised,
)
from diffusers_erase.models.embedding_hooks import (
    artefact_of,
    free_ids,
    ids_of,
    looked_up,
    states_of_ids,
    with_prefix,
)


@dataclass(frozen=True)
class TokenSearch:
    """argmin over k tokens p of  E | eps(z_t, t, c(p, prompt)) - n |^2,  z_t of the base's picture.

    UnlearnDiffAtk (arXiv 2310.11868): rows on the simplex, one time after another, and a picture
    after each; a prompt is done with at its first success, and one that is shown without the attack
    is not attacked. With `reference="base"` the base's score takes the place of n: P4D (arXiv
    2309.06135) on that schedule, where the original has its own of 3,000 iterations and projects
    onto the nearest tokens. We sample with the pipeline's own scheduler, and prompts that are too
    long are cut, not left out.
    """

    k: int = 3
    """Tokens, between the first one and the prompt; 5 for a large concept, as released."""
    iterations: int = 40
    """At each time; three evaluations each, with a reference four."""
    timesteps: int = 50
    """Times, in the middle of as many equal parts; after each comes a picture."""
    reference: Literal["base"] | None = None
    learning_rate: float = 0.01
    weight_decay: float = 0.1
    seed: int = 0
    """Of noise and tokens, beside the prompt's own."""

    access: ClassVar[Access] = "white box"

    def __post_init__(self) -> None:
        if min(self.k, self.iterations, self.timesteps) < 1:
            raise ErasureError(
                "A token search has 1 token, iteration and time or more; got "
                f"{self.k}, {self.iterations} and {self.timesteps}."
            )

    @property
    def name(self) -> str:
        """`token-search`, or `p4d` against the base's scores."""
        return "p4d" if self.reference else "token-search"

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """One picture a time and prompt, until it shows what is wanted."""
        sampler.model.noise_predictor()
        with recorded(sampler, asked) as record:
            untouched = [row for row in record.rows if not record.before[row]]
            for rows in batches(sampler, untouched):
                self._search(record, rows)
            return record.attempts()

    def _search(self, record: AttackRun, rows: Sequence[int]) -> None:
        """All of these at once, until each has succeeded or time is up."""
        sampler = record.sampler
        denoiser = sampler.model.noise_predictor(precision=sampler.sampling.autocast)
        some = [record.asked[row] for row in rows]
        clean = latents_of(sampler.pipe, originals(sampler, some))
        search = Prefixes(
            sampler.pipe,
            [a.prompt for a in some],
            self.k,
            seeds=[another(a.seed + self.seed, SEARCHED) for a in some],
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        left = list(range(len(rows)))
        span = len(denoiser.schedule.alphas) / self.timesteps
        for n in range(self.timesteps):
            t = torch.full((len(left),), int((n + 0.5) * span))
            with record.paid_by([rows[i] for i in left]):
                noises = [search.normal(left, clean) for _ in range(self.iterations)]
                targets = self._targets(denoiser, search, left, clean, t, noises)
                for noise, target in zip(noises, targets, strict=True):
                    search.improve(denoiser, left, clean, t, noise, target)
            seeds = [some[i].seed for i in left]
            draw = partial(drawn_from, sampler, search.states(left), seeds)
            shown = record.tried([rows[i] for i in left], draw)
            for i, hit in zip(left, shown, strict=True):
                if hit:
                    record.artefacts[rows[i]] = artefact_of(sampler.pipe, search.ids([i])[0])
            left = [i for i, hit in zip(left, shown, strict=True) if not hit]
            if not left:
                return

    @torch.no_grad()
    def _targets(
        self,
        denoiser: Denoiser,
        search: "Prefixes",
        left: Sequence[int],
        clean: Tensor,
        t: Tensor,
        noises: Sequence[Tensor],
    ) -> list[Tensor]:
        """The noises, or what the base says of the plain prompts there: one switch for a time."""
        if self.reference is None:
            return list(noises)
        states, x = states_of_ids(search.pipe, search.plain[list(left)]), clean[list(left)]
        with as_base(search.pipe):
            return [denoiser.student(noised(denoiser, x, t, noise), t, states) for noise in noises]


class Prefixes:
    """Rows over the vocabulary, k for each prompt, that become tokens before it."""

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        k: int,
        *,
        seeds: Sequence[int],
        learning_rate: float = 0.01,
        weight_decay: float = 0.1,
    ) -> None:
        """Uniform rows to begin with; every prompt has its own chance, whatever the others do."""
        self.pipe, self.k = pipe, k
        self.free = free_ids(pipe.tokenizer)
        self.plain = ids_of(pipe, prompts)
        self.vectors = pipe.text_encoder.get_input_embeddings().weight.detach()[self.free].float()
        uniform = torch.full((k, len(self.free)), 1 / len(self.free))
        self.rows = [uniform.to(self.vectors).clone().requires_grad_() for _ in prompts]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.optimiser = torch.optim.Adam(self.rows, learning_rate, weight_decay=weight_decay)

    def normal(self, left: Sequence[int], clean: Tensor) -> Tensor:
        """Noise for these prompts."""
        shape = clean.shape[1:]
        return torch.stack([torch.randn(shape, generator=self.generators[i]) for i in left])

    def improve(
        self,
        denoiser: Denoiser,
        left: Sequence[int],
        clean: Tensor,
        t: Tensor,
        noise: Tensor,
        target: Tensor | None = None,
    ) -> list[float]:
        """One step of Adam, and back onto the simplex; returns the losses before it.

        Forward goes one token drawn from each row, backward the row itself (straight through), with
        gradients clipped to -1 .. 1.
        """
        drawn = torch.stack([self._drawn(i) for i in left]).requires_grad_()
        with torch.enable_grad():
            states = self._encoded(left, drawn)
            losses = denoising_loss(denoiser, clean[list(left)], states, t, noise, target)
            (gradient,) = torch.autograd.grad(losses.sum(), [drawn])
        for i, each in zip(left, gradient.clamp(-1, 1), strict=True):
            self.rows[i].grad = each
        self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            for i in left:
                self.rows[i].copy_(onto_simplex(self.rows[i]))
        return losses.tolist()

    @torch.no_grad()
    def states(self, left: Sequence[int]) -> Tensor:
        """Text states of these prompts after the most likely tokens."""
        return states_of_ids(self.pipe, self.ids(left))

    def ids(self, left: Sequence[int]) -> Tensor:
        """Ids of the same."""
        best = torch.stack([self.free[self.rows[i].detach().argmax(1).cpu()] for i in left])
        return with_prefix(self.plain[list(left)], best)

    def _drawn(self, i: int) -> Tensor:
        """One-hot rows, k x V."""
        rows = self.rows[i].detach()
        tokens = torch.multinomial(rows.cpu(), 1, generator=self.generators[i])[:, 0]
        return F.one_hot(tokens, len(self.free)).to(rows)

    def _encoded(self, left: Sequence[int], rows: Tensor) -> Tensor:
        """States with rows of the vocabulary before the prompts, n x k x V, and gradients."""
        stand_in = self.free[:1].expand(len(left), self.k)
        ids = with_prefix(self.plain[list(left)], stand_in)
        with looked_up(self.pipe.text_encoder, range(1, self.k + 1), rows @ self.vectors):
            return states_of_ids(self.pipe, ids)


def onto_simplex(v: Tensor) -> Tensor:
    """argmin_w | w - v |^2  over  w >= 0, Σ w = 1,  along the last dimension.

    w = max(v - θ, 0), θ = (Σ_{i<=ρ} u_i - 1) / ρ, u the sorted v, and ρ the last j at which
    u_j > (Σ_{i<=j} u_i - 1) / j: exact, where the released code bisects.
    """
    u = v.double().sort(-1, descending=True).values
    above = u.cumsum(-1) - 1
    count = torch.arange(1, v.shape[-1] + 1, dtype=u.dtype, device=v.device)
    rho = (u * count > above).sum(-1, keepdim=True)
    theta = above.gather(-1, rho - 1) / rho
    return (v.double() - theta).clamp(min=0).to(v.dtype)
