"""Text states and their statistics, which several tries at an eraser share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusers_erase.editing.own_prompts import OwnStatistics, own_pairs
from diffusers_erase.editing.texts import Texts, texts_of
from diffusers_erase.making.priors import TextPrior, prior_in
from diffusers_erase.models.model import Model
from diffusers_erase.storage.tensor_cache import KeptTensors, TensorCache, digest


@dataclass(frozen=True)
class Statistics:
    """Text states and their statistics, found in files where there are any."""

    model: Model
    texts: Texts
    cache: TensorCache | KeptTensors
    encoder: str
    """A name for the text encoders' exact weights."""
    folder: Path | None
    """Where statistics of general prompts are found and left."""
    given: TextPrior | None
    """Those to use instead."""
    say: Callable[[str], None]
    """Called with a sentence about them when they are first used."""

    @classmethod
    def of(
        cls,
        model: Model,
        folder: Path | None = None,
        *,
        prior: str | Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> "Statistics":
        """Empty statistics, or those that an earlier call has left in a folder.

        Args:
            model: the base.
            folder: where statistics are found and left.
            prior: source of the general prompts' statistics, if not the folder.
            say: called with a sentence about the latter when they are first used.

        Raises:
            ErasureError: `prior` has no statistics that fit the model.
        """
        given = None if prior is None else TextPrior.from_pretrained(model, prior)
        encoder = digest(*model.text_encoders) if folder else ""
        kept = TensorCache(folder / "cache") if folder else KeptTensors()
        return cls(model, texts_of(model), kept, encoder, folder, given, say)

    @property
    def general(self) -> OwnStatistics:
        """Statistics of general prompts: given, in the folder, or computed and left there."""
        return self._general[0]

    @property
    def used(self) -> dict[str, Any]:
        """Which statistics of general prompts were used, for the config; empty if none were."""
        if "_general" not in self.__dict__:
            return {}
        statistics, source = self._general
        return {"general_prompts": _count(statistics), "prior": source}

    @cached_property
    def _general(self) -> tuple[OwnStatistics, str]:
        found = self.given
        if found is None and self.folder is not None:
            found = prior_in(self.folder, self.model)
        if found is not None:
            count = _count(found.statistics)
            self.say(f"The statistics of {count:,} general prompts are from {found.source}.")
            return found.statistics, found.source
        self.say("Encoding general prompts; `work` or `prior` keeps their statistics for later.")
        if self.folder is None:
            return OwnStatistics.of(self.texts), "computed"
        made = TextPrior.of(self.model, self.texts)
        made.save(self.folder)
        return made.statistics, "computed"


def _count(statistics: OwnStatistics) -> int:
    """Number of general prompts, the empty one among them."""
    return len(own_pairs(statistics.words)) + 1
