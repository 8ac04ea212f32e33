"""Token search: tokens before the prompt, found by gradients, that bring the concept back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusers_erase.attacks.attack_run import (
    SEARCH_SEEDS,
    AttackRun,
    attack_run,
    base_model,
    base_pictures,
    batches,
    draw_from_states,
    nth_seed,
)
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Access, Attempt
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.denoising_loss import denoising_loss, encode_pictures, noised
from diffusers_erase.models.embedding_hooks import (
    describe_ids,
    embeddings_at,
    ordinary_ids,
    states_of_ids,
    token_ids,
    with_prefix,
)
from diffusers_erase.models.model import Pipeline


@dataclass(frozen=True)
class TokenSearch:
    """argmin over k tokens p of  E | eps(z_t, t, c(p, prompt)) - n |^2,  z_t of the base's picture.

    UnlearnDiffAtk (arXiv 2310.11868): rows on the simplex are optimised for one time t after
    another, with a picture after each. A prompt ends at its first success, and one that is a hit
    without the attack is not attacked. With `reference="base"` the base's noise prediction takes
    the place of n: P4D (arXiv 2309.06135) on that schedule, where the original has one of 3,000
    iterations and projects onto the nearest tokens. We sample with the pipeline's own scheduler;
    prompts that are too long are truncated, not left out.
    """

    k: int = 3
    """Tokens between the first one and the prompt; the released code has 5 for a large concept."""
    iterations: int = 40
    """Updates per time; three evaluations each, four with a reference."""
    timesteps: int = 50
    """Number of times, in the middle of equal parts of the schedule; a picture follows each."""
    reference: Literal["base"] | None = None
    learning_rate: float = 0.01
    weight_decay: float = 0.1
    seed: int = 0
    """Seed of noise and tokens; added to the seed of each case."""

    access: ClassVar[Access] = "white box"

    def __post_init__(self) -> None:
        if min(self.k, self.iterations, self.timesteps) < 1:
            raise ErasureError(
                "A token search needs `k`, `iterations` and `timesteps` of 1 or more; got "
                f"{self.k}, {self.iterations} and {self.timesteps}."
            )

    @property
    def name(self) -> str:
        """`token-search`, or `p4d` with the base's noise predictions."""
        return "p4d" if self.reference else "token-search"

    def __call__(self, sampler: PipelineSampler, cases: Sequence[PromptCase]) -> list[Attempt]:
        """One picture per time and case, until it is a hit."""
        sampler.model.noise_predictor()
        with attack_run(sampler, cases) as run:
            for rows in batches(sampler, [row for row in run.rows if not run.attempts[row].before]):
                self._search(run, rows)
            return run.attempts

    def _search(self, run: AttackRun, rows: Sequence[int]) -> None:
        """Attack these cases together, until each is a hit or all times are used."""
        sampler = run.sampler
        denoiser = sampler.model.noise_predictor(precision=sampler.sampling.autocast)
        cases = [run.cases[row] for row in rows]
        clean = encode_pictures(sampler.pipe, base_pictures(sampler, cases))
        search = Prefixes(
            sampler.pipe,
            [case.prompt for case in cases],
            self.k,
            seeds=[nth_seed(case.seed + self.seed, SEARCH_SEEDS) for case in cases],
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        left = list(range(len(rows)))
        span = len(denoiser.schedule.alphas) / self.timesteps
        for n in range(self.timesteps):
            t = torch.full((len(left),), int((n + 0.5) * span))
            with run.charged_to([rows[i] for i in left]):
                noises = [search.normal(left, clean) for _ in range(self.iterations)]
                targets = self._targets(denoiser, search, left, clean, t, noises)
                for noise, target in zip(noises, targets, strict=True):
                    search.improve(denoiser, left, clean, t, noise, target)
            seeds = [cases[i].seed for i in left]
            draw = partial(draw_from_states, sampler, search.states(left), seeds)
            hits = run.attempt([rows[i] for i in left], draw)
            for i, hit in zip(left, hits, strict=True):
                if hit:
                    run.attempts[rows[i]].artefact = describe_ids(sampler.pipe, search.ids([i])[0])
            left = [i for i, hit in zip(left, hits, strict=True) if not hit]
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
        """The noises, or the base's noise predictions for the prompts without a prefix."""
        if self.reference is None:
            return list(noises)
        states, x = states_of_ids(search.pipe, search.plain[list(left)]), clean[list(left)]
        with base_model(search.pipe):
            return [denoiser.noise(noised(denoiser, x, t, noise), t, states) for noise in noises]


class Prefixes:
    """k rows over the vocabulary for each prompt, whose most likely tokens are its prefix."""

    def __init__(
        self,
        pipe: Pipeline,
        prompts: Sequence[str],
        k: int,
        *,
        seeds: Sequence[int],
        learning_rate: float = 0.01,
        weight_decay: float = 0.1,
    ) -> None:
        """Start with uniform rows; each prompt has its own random generator."""
        self.pipe, self.k = pipe, k
        self.vocabulary = ordinary_ids(pipe.tokenizer)
        self.plain = token_ids(pipe, prompts)
        embeddings = pipe.text_encoder.get_input_embeddings().weight.detach()
        self.vectors = embeddings[self.vocabulary].float()
        uniform = torch.full((k, len(self.vocabulary)), 1 / len(self.vocabulary))
        self.rows = [uniform.to(self.vectors).clone().requires_grad_() for _ in prompts]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.optimiser = torch.optim.Adam(self.rows, learning_rate, weight_decay=weight_decay)

    def normal(self, left: Sequence[int], clean: Tensor) -> Tensor:
        """Standard normal noise for these prompts, in the shape of their latents."""
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
        """One step of Adam and the projection onto the simplex; returns the losses before it.

        The forward pass uses one token sampled from each row; the gradient is that of the row
        (straight through), clipped to -1 .. 1.
        """
        one_hot = torch.stack([self._sample(i) for i in left]).requires_grad_()
        with torch.enable_grad():
            states = self._encode(left, one_hot)
            losses = denoising_loss(denoiser, clean[list(left)], states, t, noise, target)
            (gradient,) = torch.autograd.grad(losses.sum(), [one_hot])
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
        """Text states of these prompts with their prefixes."""
        return states_of_ids(self.pipe, self.ids(left))

    def ids(self, left: Sequence[int]) -> Tensor:
        """Token ids of these prompts with their prefixes."""
        best = torch.stack([self.vocabulary[self.rows[i].detach().argmax(1).cpu()] for i in left])
        return with_prefix(self.plain[list(left)], best)

    def _sample(self, i: int) -> Tensor:
        """One-hot rows of tokens sampled from the rows, k x vocabulary."""
        rows = self.rows[i].detach()
        tokens = torch.multinomial(rows.cpu(), 1, generator=self.generators[i])[:, 0]
        return F.one_hot(tokens, len(self.vocabulary)).to(rows)

    def _encode(self, left: Sequence[int], rows: Tensor) -> Tensor:
        """Text states with the mean embeddings of the rows as prefixes, with gradients to these.

        `rows` is n x k x vocabulary.
        """
        placeholder = self.vocabulary[:1].expand(len(left), self.k)
        ids = with_prefix(self.plain[list(left)], placeholder)
        with embeddings_at(self.pipe.text_encoder, range(1, self.k + 1), rows @ self.vectors):
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
