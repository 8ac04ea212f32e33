"""Everything that was seen of one eraser, as it is written down: one raw line per picture."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from tqdm.auto import tqdm

from diffusers_erase.eraser.config import versions
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Access, Attack, AttackResult, Attempt
from diffusers_erase.evaluation.detector import info_of
from diffusers_erase.evaluation.drift import bank, drift
from diffusers_erase.evaluation.metrics import Rate, compared, esr, psr
from diffusers_erase.evaluation.runner import Judgement, Runner, Side, voice
from diffusers_erase.evaluation.suites import RELATIONS, Suite
from diffusers_erase.evaluation.summary import Summary
from diffusers_erase.models.denoiser import NoiseSchedule
from diffusers_erase.runtime.plugin import list_erasures
from diffusers_erase.storage.results import ResultsLog, key_of


FORMAT = "diffusers-erase/evidence-1"

DRIFT_PROMPTS = 8


@dataclass(frozen=True)
class Evidence:
    """Raw verdicts with what one needs to count them anew; aggregates are never stored alone."""

    suite: str
    concepts: tuple[str, ...]
    relations: Mapping[str, str]
    """Group -> its relation to the concept."""
    judgements: tuple[Judgement, ...]
    drift: Mapping[str, float] | None = None
    recoveries: tuple[tuple[Side, AttackResult], ...] = ()
    """What attacks got back: `erased`, and `base` for the control, the same on the bare base."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Erasers, sampling, detector, versions."""

    @property
    def summary(self) -> Summary:
        """Counted now."""
        return Summary.of(self.judgements, self.relations, self.drift)

    def esr(self, k: int = 1) -> Rate:
        """ESR-k: pictures of what is to be gone without it among the k likeliest labels."""
        return esr(*self._ranked("gone"), k)

    def psr(self, k: int = 1) -> Rate:
        """PSR-k: pictures of what is to be kept with it among the k likeliest labels."""
        return psr(*self._ranked("kept"), k)

    def _ranked(self, expected: str) -> tuple[list[tuple[str, ...]], list[str]]:
        """Labels with the eraser, nothing in a ruined picture; and what is looked for."""
        own = [
            look
            for look in self.judgements
            if look.side == "erased" and RELATIONS[self.relations[look.group]].expected == expected
        ]
        return [x.ranked if x.valid else () for x in own], [look.wanted[0] for look in own]

    def recovered(self, attack: str, side: Side = "erased") -> AttackResult | None:
        """What that attack got back, if it was tried."""
        found = (r for s, r in self.recoveries if s == side and r.attack == attack)
        return next(found, None)

    def card(self) -> dict[str, Any]:
        """What `push_to_hub(results=...)` takes; `attacks` is the one that got most back."""
        found, most = self.summary.card(), -1.0
        for side, recovery in self.recoveries:
            control = self.recovered(recovery.attack, "base")
            if side == "erased" and control is not None:
                row = compared(control.post, recovery.post)
                found[f"attack {recovery.attack}"] = row
                if recovery.post.value > most:
                    found["attacks"], most = row, recovery.post.value
        return found

    def lines(self) -> Iterator[str]:
        """JSON: a header, then a line for each picture and each attempt."""
        header = {
            "format": FORMAT,
            "suite": self.suite,
            "concepts": list(self.concepts),
            "relations": dict(self.relations),
            "drift": None if self.drift is None else dict(self.drift),
            **self.about,
        }
        yield json.dumps({"header": header})
        for look in self.judgements:
            yield json.dumps(asdict(look))
        for side, recovery in self.recoveries:
            for attempt in recovery.attempts:
                told = {"attack": recovery.attack, "access": recovery.access, "side": side}
                yield json.dumps({**told, **asdict(attempt)})

    @classmethod
    def read(cls, path: str | Path) -> "Evidence":
        """From a `results.jsonl`.

        Raises:
            ErasureError: it is none, or cut off.
        """
        try:
            several = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
            header = dict(several[0]["header"])
            known = {"format", "suite", "concepts", "relations", "drift"}
            if header["format"] != FORMAT:
                raise ErasureError(f"'{path}' is of format {header['format']!r}, not {FORMAT!r}.")
            found: dict[tuple[Side, str, Access], list[Attempt]] = {}
            for entry in several[1:]:
                if "attack" in entry:
                    key = entry.pop("side"), entry.pop("attack"), entry.pop("access")
                    found.setdefault(key, []).append(Attempt(**_tuples(entry)))
            return cls(
                header["suite"],
                tuple(header["concepts"]),
                header["relations"],
                tuple(Judgement(**_tuples(entry)) for entry in several[1:] if "group" in entry),
                header["drift"],
                tuple(
                    (side, AttackResult(name, access, tuple(attempts)))
                    for (side, name, access), attempts in found.items()
                ),
                {k: v for k, v in header.items() if k not in known},
            )
        except ErasureError:
            raise
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ErasureError(f"'{path}' holds no results of an evaluation: {error}.") from error


def evaluate(
    runner: Runner,
    suite: Suite,
    *,
    attacks: Sequence[Attack] = (),
    attempts: int = 16,
    seed: int = 0,
) -> Evidence:
    """Look at base and erased with the same prompts and seeds, measure drift, and attack.

    Attacks are tried on the first prompts of the suite's `target` group, with other seeds; on the
    erased model, and once more with the erasers off: an attack that finds nothing there says
    nothing.

    Args:
        runner: with a pipeline that has the erasers to be measured.
        suite: what to ask.
        attacks: what to try; what was not tried is not measured.
        attempts: pictures that an attack tries to get back.
        seed: of all pictures.

    Raises:
        ErasureError: no eraser is loaded, attacks are asked for and nothing that is to be kept is
            (a broken model resists every attack), or a detector or folder fails; what was found
            until then is kept.
    """
    pipe = runner.sampler.pipe
    loaded = list_erasures(pipe)
    if not loaded:
        raise ErasureError("No eraser is loaded; call `pipe.load_erasure(...)`, then measure.")
    if attacks and not any(RELATIONS[g.relation].expected == "kept" for g in suite.groups):
        raise ErasureError(
            f"The suite '{suite.name}' looks at nothing that is to be kept. What attacks get back "
            "means nothing without it: a broken model resists them all. Add such a group."
        )
    asked = suite.asked(seed)
    judgements = (*runner(asked, "base"), *runner(asked, "erased"))
    about = {
        "erasers": {
            name: {
                "concepts": [{"name": one.name, "target": one.target} for one in e.concepts],
                "strength": e.strength,
            }
            for name, e in loaded.items()
        },
        "seed": seed,
        "sampling": asdict(runner.sampler.sampling),
        "detector": info_of(runner.sampler.detector),
        "model": str(getattr(pipe, "name_or_path", "") or ""),
        "versions": versions(),
    }
    relations = {group.name: group.relation for group in suite.groups}
    evidence = Evidence(suite.name, suite.concepts, relations, judgements, about=about)
    return replace(
        evidence,
        drift=_drift(runner, suite),
        recoveries=tuple(_attacked(runner, suite, attacks, attempts, seed)),
    )


def _drift(runner: Runner, suite: Suite) -> Mapping[str, float] | None:
    """Of prompts of the suite; None if it has none of one kind, or no schedule is known."""
    pipe = runner.sampler.pipe
    target, keep = _prompts(suite, "gone"), _prompts(suite, "kept")
    try:
        NoiseSchedule.of(pipe.scheduler)
    except ErasureError:
        return None  # such as flow matching: not measured
    return drift(pipe, bank(pipe, target, keep)).plain() if target and keep else None


def _prompts(suite: Suite, expected: str) -> list[str]:
    said = [
        p for g in suite.groups if RELATIONS[g.relation].expected == expected for p, _ in g.prompts
    ]
    several = list(dict.fromkeys(said))
    return several[:: max(1, len(several) // DRIFT_PROMPTS)][:DRIFT_PROMPTS]


def _attacked(
    runner: Runner, suite: Suite, attacks: Sequence[Attack], attempts: int, seed: int
) -> Iterator[tuple[Side, AttackResult]]:
    targets = [group for group in suite.groups if group.relation == "target"]
    if attacks and not targets:
        raise ErasureError(f"The suite '{suite.name}' has no group of relation `target` to attack.")
    log = ResultsLog(runner.work, "attacks")
    tried = [(attack, side) for attack in attacks for side in get_args(Side)]
    bar = tqdm(tried, unit="attack", disable=not (runner.progress and runner.main and tried))
    for attack, side in bar:
        bar.set_description(f"{attack.name}, {side}")
        asked = replace(targets[0], pictures=attempts).asked(seed + 500_000)
        key = key_of(identity=runner.identity(side), attack=repr(attack), asked=asked)
        if key not in log and runner.main:
            with voice(runner.sampler.pipe, side):
                found = attack(runner.sampler, asked)
            log.add({key: [asdict(attempt) for attempt in found]})
        if runner.accelerator is not None:
            runner.accelerator.wait_for_everyone()
            log.refresh()
        known = tuple(Attempt(**_tuples(entry)) for entry in log[key])
        yield side, AttackResult(attack.name, attack.access, known)


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of JSON as the tuples they were."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
