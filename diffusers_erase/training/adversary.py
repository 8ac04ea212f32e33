"""An adversary of the eraser in training: words learnt to bring the concept back."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_erase.concepts import Prompt
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.embedding_hooks import placeholder_words, word_states
from diffusers_erase.models.trajectories import View
from diffusers_erase.training.inner_loop import Loss, Views
from diffusers_erase.training.targets import TargetContext


@dataclass(frozen=True)
class LearntWords:
    """Words v with which the eraser in training draws the concept c all the same.

    argmin_v  E | eps(z, t, c(v)) - eps*(z, t, c) |^2

    Textual inversion (arXiv 2208.01618) towards the base's own scores, without a picture. c(v) is a
    prompt with a word of the token embeddings v in the concept's place. Every so many steps a word
    is learnt from scratch against the student as it is then. In the role `role` of the view
    `concept` the newest word and those found before take turns.

    With `rounds` it is the search of STEREO (arXiv 2408.16807): after the last one the student
    begins anew and unlearns all words, each as often as the others. With `beside` they are the soft
    tokens of Receler (arXiv 2311.17717).
    """

    every: int = 20
    """Steps between two searches; the first is before the first step."""
    updates: int = 30
    """Of a word in a search."""
    batch: int = 8
    """Latents per update."""
    memory: int = 16
    """Number of words that are remembered, the newest ones."""
    learning_rate: float = 0.1
    """Of a search, in standard deviations of the text encoder's embeddings."""
    spread: float = 0.5
    """Of a word's first embedding around the mean of all, in standard deviations of these."""
    rounds: int = 0
    """Searches in all, after which the student begins anew; 0 for searches to the end."""
    tokens: int = 1
    """Token embeddings of a word."""
    beside: bool = False
    """The word stands after the whole prompt instead of in the concept's place."""
    mixed: bool = False
    """What lies between two words that are remembered is answered, too: each latent's word is a
    random point between the one whose turn it is and another."""
    enough: float = math.inf
    """A search that ends with a loss of this or more, in units of the guidance of the concept, has
    found nothing: it is the last one, and the run ends with its steps."""
    role: str = "adversary"
    """In the view `concept`; several adversaries have one each."""

    def __post_init__(self) -> None:
        for name in ("every", "updates", "batch", "memory", "tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ErasureError(
                    f"`{name}` is a number of 1 or more, without a fraction; got {value!r}."
                )
        if not isinstance(self.mixed, bool):
            raise ErasureError(f"`mixed` is True or False; got {self.mixed!r}.")
        if not isinstance(self.rounds, int) or self.rounds < 0 or self.rounds == 1:
            raise ErasureError(
                "`rounds` is a number of 2 or more searches, or 0 for searches to the end; got "
                f"{self.rounds!r}."
            )
        if self.rounds > self.memory:
            raise ErasureError(
                f"`memory` must be no less than `rounds`, whose words are unlearnt together; got "
                f"{self.memory} and {self.rounds}."
            )
        if not self.enough > 0 or (self.rounds and self.enough < math.inf):
            raise ErasureError(
                f"`enough` is a positive loss, and ends no run with `rounds`; got {self.enough}."
            )
        if not 0 < self.learning_rate < float("inf"):
            raise ErasureError(f"`learning_rate` must be positive; got {self.learning_rate}.")
        if not 0 <= self.spread < float("inf"):
            raise ErasureError(f"`spread` must not be negative; got {self.spread}.")

    @property
    def restart(self) -> int:
        """The step of the last search, at which the student begins anew; 0 for never."""
        return max(0, self.rounds - 1) * self.every

    def begin(self, context: TargetContext, *, seed: int) -> "LearntWordsState":
        """No word is known yet.

        Raises:
            ErasureError: the pipeline has no single text encoder whose words can be learnt.
        """
        return LearntWordsState(self, context, seed)


class LearntWordsState:
    """The words found so far, one for each concept and search."""

    def __init__(self, settings: LearntWords, context: TargetContext, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self._context = context
        encoder = getattr(context.pipeline, "text_encoder", None)
        if encoder is None or getattr(context.pipeline, "text_encoder_2", None) is not None:
            raise ErasureError(
                "An adversary learns words of a pipeline's one text encoder; leave it out for "
                f"'{type(context.pipeline).__name__}'."
            )
        self._templates = [_template(prompt, beside=settings.beside) for prompt in context.prompts]
        tokenizer = context.pipeline.tokenizer
        self._placeholder = placeholder_words(tokenizer, self._templates, settings.tokens)
        word, tokens = self._placeholder
        for template in self._templates:
            ids = tokenizer(template.replace("{}", word), truncation=True).input_ids
            if not set(tokens) <= set(ids):
                raise ErasureError(
                    f"No word can stand for '{{}}' in the prompt {template!r}: it is not a word by "
                    "itself there, or the prompt is too long. Change the concept's prompts."
                )
        embeddings = encoder.get_input_embeddings().weight.detach().float()
        self._mean = embeddings.mean(0)
        self._deviation = (embeddings - self._mean).square().mean().sqrt().item()
        shape = (0, len(context.concepts), settings.tokens, len(self._mean))
        self.words = self._mean.new_empty(shape)
        """Token embeddings, searches x concepts x tokens x width, the newest last."""
        self.losses: tuple[float, ...] = ()
        """Of the last search: one per update, in units of the guidance of the concept."""
        self.ending: tuple[int, int] | None = None
        """First step of the last round, and its end, once a search has found nothing."""
        self._searched = self._step = -1
        self._step_chance = self._chance(0)

    def __call__(self, step: int, views: Views) -> Views:
        """The view `concept` with the role: its prompts with a word that was found."""
        restart = self.settings.restart
        due = step % self.settings.every == 0 and not 0 < restart < step
        if due and step != self._searched:
            found = self._search(step)[None]
            self.words = torch.cat([self.words, found])[-self.settings.memory :]
            self._searched = step
        view = views["concept"]
        if step != self._step:  # minibatches of one step go on with its chance
            self._step, self._step_chance = step, self._chance(step)
        chosen, chance = len(self.words) - 1, self._step_chance
        if step % 2 or 0 < restart <= step:
            chosen = int(torch.randint(len(self.words), (1,), generator=chance))
        owners = self._owners(view)
        words = self.words[chosen, owners]
        if self.settings.mixed:
            others = torch.randint(len(self.words), (len(owners),), generator=chance)
            shares = torch.rand((len(owners), 1, 1), generator=chance).to(words)
            words = words.lerp(self.words[others, owners], shares)
        with torch.no_grad():
            states = self._states(words, view)
        return {**views, "concept": view.with_role(self.settings.role, states)}

    def learn(self, views: Views, loss: Loss, mean: Callable[[Tensor], Tensor]) -> None:
        """Ends the run after this round if its search has found nothing in any process."""
        if self.losses and self.ending is None:
            last = torch.tensor(self.losses[-max(1, len(self.losses) // 10) :])
            if mean(last.mean().to(self._mean.device)) >= self.settings.enough:
                self.ending = (self._searched, self._searched + self.settings.every)

    def choices(self) -> tuple[ErasedConcept, ...]:
        """Empty: it chooses no targets."""
        return ()

    def state(self) -> dict[str, Tensor]:
        """The words; a search is repeated if the run stopped before the end of its step."""
        return {"words": self.words, "ending": torch.tensor(self.ending or ())}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.words = state["words"].to(self._mean)
        found = [int(step) for step in state.get("ending", ())]
        self.ending = (found[0], found[1]) if found else None

    def _search(self, step: int) -> Tensor:
        """A new word for each concept, concepts x tokens x width."""
        context, settings, chance = self._context, self.settings, self._chance(step)
        noise = torch.randn(self.words.shape[1:], generator=chance).to(self._mean)
        words = (self._mean + settings.spread * self._deviation * noise).requires_grad_()
        optimiser = torch.optim.Adam([words], settings.learning_rate * self._deviation)
        losses = []
        for _ in range(settings.updates):
            view = context.trajectories.draw(context.denoiser, settings.batch, chance)
            wanted = view.teacher("concept")
            with torch.enable_grad():
                states = self._states(words[self._owners(view)], view)
                student = view.with_role("adversary", states).student("adversary")
                loss = (student - wanted).square().mean()
                (words.grad,) = torch.autograd.grad(loss, [words])
            optimiser.step()
            guidance = (wanted - view.teacher("null")).square().mean()
            losses.append((loss.detach() / guidance).item())
        self.losses = tuple(losses)
        found: Tensor = words.detach()
        return found

    def _states(self, words: Tensor, view: View) -> Tensor:
        """Text states of the prompts of a view's latents, with a word each, B x tokens x width."""
        rows = self._context.trajectories.prompt[view.rows].tolist()
        texts = [self._templates[row] for row in rows]
        return word_states(self._context.pipeline, texts, words, self._placeholder)

    def _owners(self, view: View) -> Tensor:
        """Index of the concept of each latent, B."""
        return self._context.concept_of[self._context.trajectories.prompt[view.rows].cpu()]

    def _chance(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step + 500_009)


def _template(prompt: Prompt, *, beside: bool = False) -> str:
    """The prompt with `{}` for the name, or after it; a place keeps its own preposition."""
    if beside:
        return f"{prompt.text} {{}}"
    if prompt.kind == "place" and prompt.name in prompt.text:
        return prompt.text.replace(prompt.name, "{}", 1)
    return prompt.about("{}")
