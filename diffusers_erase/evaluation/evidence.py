"""`evaluate`: all that is measured of an eraser, stored as one raw line per picture and attempt."""

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
from diffusers_erase.evaluation.drift import base_predictions, drift
from diffusers_erase.evaluation.metrics import Rate, card_row, esr, psr
from diffusers_erase.evaluation.runner import Judgement, Runner, Side, erasers_off_for_base
from diffusers_erase.evaluation.suites import RELATIONS, Suite
from diffusers_erase.evaluation.summary import Summary
from diffusers_erase.models.denoiser import NoiseSchedule
from diffusers_erase.runtime.plugin import list_erasures
from diffusers_erase.storage.results import ResultsLog, key_of


FORMAT = "diffusers-erase/evidence-1"

DRIFT_PROMPTS = 8
"""Most prompts of each kind that drift is measured on."""

ATTACK_SEEDS = 500_000
"""Offset of the seeds of attacked cases from those of the suite."""


@dataclass(frozen=True)
class Evidence:
    """The judgements and attempts of an evaluation, from which all rates are counted."""

    suite: str
    concepts: tuple[str, ...]
    relations: Mapping[str, str]
    """Group -> its relation to the concept."""
    judgements: tuple[Judgement, ...]
    drift: Mapping[str, float] | None = None
    attacks: tuple[tuple[Side, AttackResult], ...] = ()
    """Results of attacks on the erased model, and on the base model as positive control."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Erasers, sampling, detector, versions."""

    @property
    def summary(self) -> Summary:
        """Rates and verdict."""
        return Summary.of(self.judgements, self.relations, self.drift)

    def esr(self, k: int = 1) -> Rate:
        """ESR-k: pictures of prompts to erase without the wanted label among the k likeliest."""
        return esr(*self._ranked("gone"), k)

    def psr(self, k: int = 1) -> Rate:
        """PSR-k: pictures of prompts to keep with the wanted label among the k likeliest."""
        return psr(*self._ranked("kept"), k)

    def _ranked(self, expected: str) -> tuple[list[tuple[str, ...]], list[str]]:
        """Ranked labels of each erased picture (none if it is invalid), and the wanted labels."""
        own = [
            judgement
            for judgement in self.judgements
            if judgement.side == "erased"
            and RELATIONS[self.relations[judgement.group]].expected == expected
        ]
        return [x.ranked if x.valid else () for x in own], [x.wanted[0] for x in own]

    def attack_result(self, attack: str, side: Side = "erased") -> AttackResult | None:
        """The result of the attack of that name, if it was run."""
        return next((r for s, r in self.attacks if s == side and r.attack == attack), None)

    def card(self) -> dict[str, Any]:
        """The `results` of `push_to_hub`; `attacks` is the most successful one."""
        results, highest = self.summary.card(), -1.0
        for side, result in self.attacks:
            control = self.attack_result(result.attack, "base")
            if side == "erased" and control is not None:
                row = card_row(control.post, result.post)
                results[f"attack {result.attack}"] = row
                if result.post.value > highest:
                    results["attacks"], highest = row, result.post.value
        return results

    def lines(self) -> Iterator[str]:
        """JSON: a header, then one line per judgement and attempt."""
        header = {
            "format": FORMAT,
            "suite": self.suite,
            "concepts": list(self.concepts),
            "relations": dict(self.relations),
            "drift": None if self.drift is None else dict(self.drift),
            **self.settings,
        }
        yield json.dumps({"header": header})
        for judgement in self.judgements:
            yield json.dumps(asdict(judgement))
        for side, result in self.attacks:
            for attempt in result.attempts:
                origin = {"attack": result.attack, "access": result.access, "side": side}
                yield json.dumps({**origin, **asdict(attempt)})

    @classmethod
    def read(cls, path: str | Path) -> "Evidence":
        """Read a `results.jsonl`."""
        try:
            entries = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
            header = dict(entries.pop(0)["header"])
            if header.pop("format") != FORMAT:
                raise ErasureError(f"'{path}' is not of the format '{FORMAT}'.")
            attempts: dict[tuple[Side, str, Access], list[Attempt]] = {}
            for entry in entries:
                if "attack" in entry:
                    key = entry.pop("side"), entry.pop("attack"), entry.pop("access")
                    attempts.setdefault(key, []).append(Attempt(**_tuples(entry)))
            return cls(
                suite=header.pop("suite"),
                concepts=tuple(header.pop("concepts")),
                relations=header.pop("relations"),
                judgements=tuple(Judgement(**_tuples(e)) for e in entries if "group" in e),
                drift=header.pop("drift"),
                attacks=tuple(
                    (side, AttackResult(name, access, tuple(each)))
                    for (side, name, access), each in attempts.items()
                ),
                settings=header,
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
    """Judge pictures of the base and the erased model, measure drift, and run attacks.

    Both models get the same prompts and seeds.

    Attacks are run on the first cases of the suite's `target` group with other seeds: on the erased
    model, and on the base model as positive control, without which a failed attack means nothing.

    Args:
        runner: with a pipeline that has the erasers to be measured.
        suite: the prompts.
        attacks: the attacks to run.
        attempts: cases per attack.
        seed: of all pictures.

    Raises:
        ErasureError: no eraser is loaded, attacks are given and the suite is not for attacks (see
            `require_attackable`), or a detector or folder fails; what was measured until then is
            stored.
    """
    pipe = runner.sampler.pipe
    loaded = list_erasures(pipe)
    if not loaded:
        raise ErasureError("No eraser is loaded; call `pipe.load_erasure(...)`, then measure.")
    if attacks:
        require_attackable(suite)
    cases = suite.cases(seed)
    judgements = (*runner(cases, "base"), *runner(cases, "erased"))
    settings = {
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
        "model": runner.sampler.model.name,
        "versions": versions(),
    }
    return Evidence(
        suite.name,
        suite.concepts,
        {group.name: group.relation for group in suite.groups},
        judgements,
        _drift(runner, suite),
        tuple(_attack_results(runner, suite, attacks, attempts, seed)),
        settings,
    )


def require_attackable(suite: Suite) -> None:
    """Raise if a suite has no target to attack, or nothing to keep: a broken model resists all."""
    if not any(RELATIONS[group.relation].expected == "kept" for group in suite.groups):
        raise ErasureError(
            f"The suite '{suite.name}' has no group that is to be kept, and without one attacks "
            "mean nothing: a broken model resists them all. Add such a group."
        )
    if not any(group.relation == "target" for group in suite.groups):
        raise ErasureError(f"The suite '{suite.name}' has no group of relation `target` to attack.")


def _drift(runner: Runner, suite: Suite) -> Mapping[str, float] | None:
    """Drift on prompts of the suite; None if one kind is missing, or the schedule is unknown."""
    pipe = runner.sampler.pipe
    target, keep = _prompts(suite, "gone"), _prompts(suite, "kept")
    try:
        NoiseSchedule.of(pipe.scheduler)
    except ErasureError:
        return None  # such as flow matching
    if not (target and keep):
        return None
    return drift(pipe, base_predictions(pipe, target, keep)).to_dict()


def _prompts(suite: Suite, expected: str) -> list[str]:
    """Choose at most `DRIFT_PROMPTS` prompts with that expectation, evenly spread."""
    groups = [group for group in suite.groups if RELATIONS[group.relation].expected == expected]
    prompts = list(dict.fromkeys(prompt for group in groups for prompt, _ in group.prompts))
    return prompts[:: max(1, len(prompts) // DRIFT_PROMPTS)][:DRIFT_PROMPTS]


def _attack_results(
    runner: Runner, suite: Suite, attacks: Sequence[Attack], attempts: int, seed: int
) -> Iterator[tuple[Side, AttackResult]]:
    targets = [group for group in suite.groups if group.relation == "target"]
    log = ResultsLog(runner.work, "attacks")
    todo = [(attack, side) for attack in attacks for side in get_args(Side)]
    bar = tqdm(todo, unit="attack", disable=not (runner.progress and runner.main and todo))
    for attack, side in bar:
        bar.set_description(f"{attack.name}, {side}")
        cases = replace(targets[0], pictures=attempts).cases(seed + ATTACK_SEEDS)
        key = key_of(identity=runner.identity(side), attack=repr(attack), cases=cases)
        if key not in log and runner.main:
            with erasers_off_for_base(runner.sampler.pipe, side):
                found = attack(runner.sampler, cases)
            log.add({key: [asdict(attempt) for attempt in found]})
        if runner.accelerator is not None:
            runner.accelerator.wait_for_everyone()
            log.refresh()
        stored = tuple(Attempt(**_tuples(entry)) for entry in log[key])
        yield side, AttackResult(attack.name, attack.access, stored)


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with tuples for the lists of JSON."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
