"""Parts shared by detectors that are transformers models: loading, description, ranked labels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor

from diffusers_erase.errors import ErasureError, first_line
from diffusers_erase.evaluation.detector import Detection
from diffusers_erase.storage.results import key_of


TOP = 5
"""Number of labels that a verdict ranks; ESR-5 and PSR-5 are counted on them."""


def load(kind: Any, model_id: str | Path, revision: str | None, **options: Any) -> Any:
    """`kind.from_pretrained(model_id)`."""
    pinned = {} if revision is None else {"revision": revision}
    try:
        return kind.from_pretrained(str(model_id), **pinned, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ErasureError(
            f"Cannot load '{model_id}' by {kind.__name__}: {first_line(error)}. It must be a Hub "
            "id or a folder of such a model, with its weights in safetensors."
        ) from error


def short_name(model_id: str | Path) -> str:
    """The Hub id, or the folder's own name without its path, which is private."""
    return Path(model_id).resolve().name if Path(model_id).is_dir() else str(model_id)


def describe(model: Any, processor: Any, name: str, weights: str) -> dict[str, Any]:
    """The entries of a detector's `info` for its model and image processor."""
    return {
        "name": name or type(model).__name__,
        "commit": getattr(model.config, "_commit_hash", None),
        "preprocessing": f"{type(processor).__name__} {key_of(**processor.to_dict())[:8]}",
        "transformers": transformers.__version__,
        "weights": weights,
    }


def require_eval_mode(model: Any) -> None:
    """Raise if the model is in training mode, in which equal pictures get different verdicts."""
    if model.training:
        raise ErasureError(
            f"{type(model).__name__} is in training mode, in which verdicts are random; call its "
            "eval() first."
        )


def ranked(
    probabilities: Tensor, labels: Sequence[str], is_valid: Callable[[str, float], bool]
) -> Detection:
    """The verdict of one picture's probabilities: the likeliest label, and the `TOP` likeliest."""
    scores, order = probabilities.topk(min(TOP, len(labels)))
    names = tuple(labels[i] for i in order.tolist())
    best = float(scores[0])
    return Detection(names[0], best, valid=is_valid(names[0], best), ranked=names)
