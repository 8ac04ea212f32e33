"""Plans of sweeps: YAML files that name concepts, recipes, seeds and suites."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

from diffusers_erase.attacks import attack_named
from diffusers_erase.cli.measuring import sampling_of, suite_named
from diffusers_erase.cli.options import asked_concepts, own_words
from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.errors import ErasureError, require_choice
from diffusers_erase.evaluation.detectors import DETECTORS, require_detector
from diffusers_erase.evaluation.evidence import require_attackable
from diffusers_erase.evaluation.sampler import Precision
from diffusers_erase.evaluation.suites import ProtocolReader, read_yaml
from diffusers_erase.making.request import Request, as_recipe
from diffusers_erase.making.sweep import SweptEraser, SweptSuite
from diffusers_erase.training.recipes import Recipe
from diffusers_erase.training.targets import Target, as_target


KEYS = ("model", "vocabulary", "concepts", "recipes", "seeds", "suites")


@dataclass(frozen=True)
class Plan:
    """A model, and the erasers to make of it: concepts x recipes x seeds, with their suites."""

    model: str
    erasers: tuple[SweptEraser, ...]

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """The plan in a YAML file; docs/measuring.md has its keys.

        Raises:
            ErasureError: a key, recipe, suite, detector or attack is unknown, a value is of the
                wrong kind, or they do not fit together. The message names the line.
        """
        return _PlanReader(ProtocolReader(*read_yaml(path), f"'{path}'"), path.parent).plan()


@dataclass(frozen=True)
class _PlanReader:
    reader: ProtocolReader
    folder: Path
    """Folder of the plan, from which files of suites are named."""

    def plan(self) -> Plan:
        """The whole plan."""
        top = self.reader.mapping(self.reader.content, (), KEYS, ("concepts", "recipes", "suites"))
        model = self.text(top.get("model", "playground"), ("model",))
        words = self.reader.texts(top["vocabulary"], ("vocabulary",)) if "vocabulary" in top else ()
        given = Vocabulary(words) if words else None
        recipes = {name: self.recipe(name, e) for name, e in self.entries(top, "recipes").items()}
        suites = self.entries(top, "suites")
        erasers = []
        for label, entry in self.entries(top, "concepts").items():
            concepts, target = self.concepts(label, entry, given)
            known = given or own_words(model, concepts)
            measured = tuple(self.suite(n, e, concepts, model) for n, e in suites.items())
            for (name, (recipe, check)), seed in product(recipes.items(), self.seeds(top)):
                with self.at("concepts", label):
                    request = Request(concepts, recipe, known, target, (), (), seed)
                    if target is not None:
                        target.check(concepts, known)
                    elif isinstance(recipe, Recipe):
                        recipe.target(known)  # needs a vocabulary, mostly
                erasers.append(SweptEraser(label, name, request, check, measured))
        return Plan(model, tuple(erasers))

    def concepts(
        self, label: str, entry: Mapping[str, Any], words: Vocabulary | None
    ) -> tuple[tuple[Concept, ...], Target | None]:
        """The concepts of one eraser, and its target; synonyms belong to the first concept."""
        path = ("concepts", label)
        entry = self.reader.mapping(entry, path, {"names", "synonyms", "kind", "target"})
        names = self.reader.texts(entry.get("names", label), (*path, "names"))
        synonyms = self.reader.texts(entry["synonyms"], path) if "synonyms" in entry else ()
        with self.at(*path):
            several = "list them as `names` of an entry"
            first, *others = asked_concepts(names, entry.get("kind"), words, several=several)
            first = replace(first, synonyms=(*first.synonyms, *synonyms))
            target = as_target(entry["target"]) if "target" in entry else None
        return (first, *others), target

    def recipe(self, name: str, entry: Mapping[str, Any]) -> tuple[Recipe | Edit, bool]:
        """The recipe of that name, or of `recipe`, with its own numbers; and whether to check."""
        path = ("recipes", name)
        with self.at(*path):
            recipe = as_recipe(self.text(entry.get("recipe", name), path))
        own = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name != "name"}
        plain = {key: value for key, value in own.items() if isinstance(value, int | float | str)}
        plain = {"check": False, **plain}
        self.reader.mapping(entry, path, {"recipe", *plain})
        given = {
            key: self.like(plain[key], value, (*path, key))
            for key, value in entry.items()
            if key != "recipe"
        }
        check = given.pop("check", False)
        with self.at(*path):
            return replace(recipe, **given), check

    def suite(
        self, name: str, entry: Mapping[str, Any], concepts: Sequence[Concept], model: str
    ) -> SweptSuite:
        """The suite of that name, or of `suite`, about these concepts."""
        path, names = ("suites", name), [concept.name for concept in concepts]
        numbers = {"pictures": 64, "steps": 25, "guidance": 7.5, "batch": 32, "attempts": 16}
        texts = {"precision": "float32", "detector": "judge" if model == "playground" else ""}
        self.reader.mapping(entry, path, {"suite", "attacks", *numbers, *texts})
        given: dict[str, Any] = {
            key: (self.reader.count if type(usual) is int else partial(self.like, usual))(
                entry[key], (*path, key)
            )
            for key, usual in {**numbers, **texts}.items()
            if key in entry
        }
        asked = self.text(entry.get("suite", name), path).replace("{concept}", names[0])
        attacks = self.reader.texts(entry["attacks"], path) if "attacks" in entry else ()
        own_file = Path(asked).suffix in (".yaml", ".yml")
        detector = given.get("detector", texts["detector"])
        with self.at(*path):
            if own_file and "pictures" in given:
                raise ErasureError(f"The number of `pictures` belongs into '{asked}'")
            suite = suite_named(
                str(self.folder / asked) if own_file else asked, names, model, given.get("pictures")
            )
            if {x.casefold() for x in suite.concepts} != {x.casefold() for x in names}:
                raise ErasureError(
                    f"The suite '{suite.name}' is about {', '.join(suite.concepts)}, the eraser "
                    f"about {', '.join(names)}; write a file for each, as '{{concept}}.yaml'"
                )
            precision, batch = given.get("precision", "float32"), given.get("batch", 32)
            require_choice("precision", precision, get_args(Precision))
            sampling = sampling_of(model, given.get("steps"), given.get("guidance"), batch)
            sampling = replace(sampling, precision=precision)  # not the machine's fastest
            require_detector(detector, ("judge", *DETECTORS))
            tried = tuple(attack_named(attack, concepts[0]) for attack in attacks)
            if tried:
                require_attackable(suite)
        return SweptSuite(name, suite, sampling, detector, tried, given.get("attempts", 16))

    def seeds(self, top: Mapping[str, Any]) -> list[int]:
        """Different whole numbers, 0 or more."""
        seeds = top.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds):
            self.reader.fail(("seeds",), f"a list of different seeds is needed here; got {seeds!r}")
        for seed in seeds:
            if type(seed) is not int or seed < 0:
                self.reader.fail(("seeds",), f"a seed is a whole number from 0 on; got {seed!r}")
        return seeds

    def entries(self, top: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
        """Name -> its options: of a list of names, or of a mapping in which they may be empty."""
        value = top[key]
        if not isinstance(value, Mapping):
            names = self.reader.texts(value, (key,))
            if len(set(names)) < len(names):
                self.reader.fail((key,), "a name stands here twice")
            return {name: {} for name in names}
        if not value:
            self.reader.fail((key,), "nothing is named; name at least one")
        for name, options in value.items():
            self.text(name, (key, name))
            self.reader.mapping(options or {}, (key, name))
        return {name: options or {} for name, options in value.items()}

    def like(self, usual: Any, value: Any, path: tuple[Any, ...]) -> Any:
        """The value, if it is of the usual one's type; YAML reads 1 and 1e-4 as other types."""
        if type(usual) is float and type(value) in (int, str):
            with suppress(ValueError):
                return float(value)
        if type(value) is not type(usual):
            self.reader.fail(path, f"a value such as {usual!r} is needed here; got {value!r}")
        return value

    def text(self, value: Any, path: tuple[Any, ...]) -> str:
        """The value, which must be a text."""
        if not isinstance(value, str) or not value.strip():
            self.reader.fail(path, f"a text is needed here; got {value!r}")
        return value

    @contextmanager
    def at(self, *path: str) -> Iterator[None]:
        """Adds the plan's line to an error of the block."""
        try:
            yield
        except ErasureError as error:
            self.reader.fail(path, str(error))
