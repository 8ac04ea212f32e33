"""Arguments of `load_erasure` and its family, checked before anything is changed."""

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal, cast, get_args

from torch import Tensor, nn

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.products import LARGEST
from diffusers_erase.errors import ErasureError, require_choice
from diffusers_erase.models.architectures import linear, reads_text
from diffusers_erase.models.model import Model
from diffusers_erase.runtime.baking import rewritable
from diffusers_erase.runtime.loaded_eraser import Keep, KeepNull, Mode


Source = str | Path | EraserAdapter
AnyMode = Literal["auto", "bake", "hook", "adapter"]


def sources_of(given: Any) -> list[Source]:
    """The sources of one or several erasers."""
    alone = isinstance(given, Source)
    several = [given] if alone or not isinstance(given, Sequence) else list(given)
    for one in several:
        if not isinstance(one, Source):
            raise ErasureError(
                "A source of an eraser is a folder, a file, a Hub id (user/name) or an "
                f"`EraserAdapter`, or a list of these; got {one!r:.200}."
            )
    return several


def names_of(given: Any, count: int) -> list[str | None]:
    """A name or None for each eraser."""
    names = each("name", given, count)
    for name in names:
        if not (name is None or (isinstance(name, str) and name.strip())):
            raise ErasureError(f"The `name` of an eraser is a string; got {name!r:.200}.")
    return names


def strengths_of(given: Any, count: int) -> list[float]:
    """A finite number for each eraser."""
    strengths = each("strength", given, count)
    for strength in strengths:
        if not isinstance(strength, Real) or not abs(float(strength)) <= LARGEST:
            raise ErasureError(
                f"`strength` must be a finite number of at most {LARGEST:.0e}; "
                f"got {strength!r:.99}."
            )
    return [float(strength) for strength in strengths]


def each(what: str, given: Any, count: int) -> list[Any]:
    """A value for each of `count` erasers; a single number is for all."""
    if given is None or isinstance(given, Real):
        return [given] * count
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if len(values) != count:
        raise ErasureError(f"{count} erasers need {count} values for `{what}`; got {values!r}.")
    return values


def require_keep(base: Keep | None, null: KeepNull | None, mode: str) -> None:
    """Raise for values of `keep_base` and `keep_null` that mean nothing, or not in this mode."""
    require_choice("mode", mode, get_args(AnyMode))
    if base not in (True, False, "cpu", None):
        raise ErasureError(f'`keep_base` is True, False or "cpu"; got {base!r}.')
    if null not in ("exact", None):
        raise ErasureError(f'`keep_null` is "exact" or None; got {null!r}.')
    if null and mode not in ("auto", "hook"):
        raise ErasureError(
            f'`keep_null="exact"` passes over the empty prompt while a layer runs, and with '
            f'`mode="{mode}"` the eraser is in the weights or in an adapter, where rounding moves '
            'the empty prompt; load it with `mode="hook"`.'
        )


def null_states(model: Model) -> Tensor:
    """The empty prompt's text states as this pipeline computes them, tokens x width, float32."""
    if model.textless:
        raise ErasureError(
            '`keep_null="exact"` needs the text states of the empty prompt, and '
            f"{model.textless}; pass the pipeline with its text encoders."
        )
    return model.encode([""])[0].float()


def require_text_layers_only(unet: nn.Module, adapter: EraserAdapter) -> None:
    """Raise if an eraser changes layers in which the empty prompt cannot be recognised."""
    others = [path for path in adapter.paths(unet) if not reads_text(path)]
    if others:
        raise ErasureError(
            f"The eraser of '{adapter.config.title}' changes layers that do not read the text "
            f"('{others[0]}' and {len(others) - 1} others), where the empty prompt cannot be told "
            'from others; load it without `keep_null="exact"`.'
        )


def chosen_mode(mode: str, unet: nn.Module, adapter: EraserAdapter, null: bool) -> Mode:
    """The mode that is asked for; for `auto` the one in which the eraser can act."""
    if mode == "auto":
        layers = (linear(unet, path) for path in adapter.paths(unet))
        return "bake" if not null and all(map(rewritable, layers)) else "hook"
    return cast(Mode, mode)
