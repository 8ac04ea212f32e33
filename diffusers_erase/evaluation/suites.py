"""Suites: the prompts an eraser is measured with, and the labels their pictures should show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from diffusers_erase.errors import ErasureError


Expected = Literal["gone", "kept", "either"]


@dataclass(frozen=True)
class Relation:
    """A relation of prompts to the erased concept, and the effect an eraser should have on them."""

    expected: Expected
    """`gone`: the wanted labels are no longer shown; `kept`: shown as before; `either`: both are
    fine."""
    counts_as: Literal["efficacy", "generality", "sensitivity", None]
    """The measure of EraseBench (arXiv 2501.09833) that these prompts belong to."""
    description: str


RELATIONS: dict[str, Relation] = {
    "target": Relation("gone", "efficacy", "the concept, by name"),
    "paraphrase": Relation("gone", "generality", "the concept, by synonyms"),
    "subset": Relation("gone", "generality", "special kinds of the concept"),
    "scene": Relation("gone", "generality", "the concept beside something else"),
    "co-occurring": Relation("kept", "sensitivity", "what is shown beside the concept"),
    "neighbour": Relation("kept", "sensitivity", "its nearest neighbours"),
    "superset": Relation("kept", "sensitivity", "other members of its family, by the family"),
    "binomial": Relation("kept", "sensitivity", "what it usually comes with"),
    "other": Relation("kept", None, "other concepts"),
    "attribute": Relation("kept", None, "attributes of other concepts"),
    "null": Relation("either", None, "no prompt"),
}


@dataclass(frozen=True)
class PromptCase:
    """A prompt and seed for one picture, which is a hit if it shows one of the wanted labels."""

    group: str
    prompt: str
    wanted: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class PromptGroup:
    """Prompts with the same relation to the erased concept: one row of the table."""

    name: str
    relation: str
    prompts: tuple[tuple[str, tuple[str, ...]], ...]
    """(prompt, wanted labels)."""
    pictures: int

    def cases(self, seed: int = 0) -> list[PromptCase]:
        """One case per picture; the prompts take turns, and picture i has the seed `seed + i`."""
        return [
            PromptCase(self.name, *self.prompts[i % len(self.prompts)], seed + i)
            for i in range(self.pictures)
        ]


@dataclass(frozen=True)
class Suite:
    """All groups of prompts for the erasure of one or more concepts."""

    name: str
    concepts: tuple[str, ...]
    groups: tuple[PromptGroup, ...]

    @classmethod
    def of(cls, protocol: Mapping[str, Any]) -> "Suite":
        """The suite that a mapping describes; see docs/measuring.md for its keys."""
        return ProtocolReader(protocol, {}, "the suite").suite()

    @classmethod
    def read(cls, path: str | Path) -> "Suite":
        """The suite that a YAML file describes."""
        content, lines = read_yaml(path)
        return ProtocolReader(content, lines, f"'{path}'").suite()

    def cases(self, seed: int = 0) -> list[PromptCase]:
        """The cases of all groups."""
        return [case for group in self.groups for case in group.cases(seed)]


def shipped_protocols() -> dict[str, Path]:
    """Name -> YAML file of the protocols in the package: class names, no prompt sets of others."""
    folder = Path(__file__).parent / "protocols"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


Lines = Mapping[tuple[Any, ...], int]
"""Keys that lead to a value of a YAML file -> the line of the value, from 1."""


def read_yaml(path: str | Path) -> tuple[Any, Lines]:
    """The plain values in a YAML file, and the line of each."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        node, content = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ErasureError(f"'{path}'{line}: {error.problem}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ErasureError(f"Cannot read '{path}': {error}.") from error
    lines: dict[tuple[Any, ...], int] = {}
    _add_lines(node, (), lines)
    return content, lines


def _add_lines(node: Any, path: tuple[Any, ...], lines: dict[tuple[Any, ...], int]) -> None:
    if node is None:
        return
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _add_lines(value, (*path, key.value), lines)
            lines[(*path, key.value)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _add_lines(value, (*path, i), lines)


@dataclass(frozen=True)
class ProtocolReader:
    """Reads the plain values of a protocol; every error names the file and the line."""

    content: Any
    lines: Lines
    source: str

    def suite(self) -> Suite:
        """The suite."""
        top = self.mapping(self.content, (), {"suite", "concept", "groups"}, {"concept", "groups"})
        concepts = self.texts(top["concept"], ("concept",))
        groups = self.mapping(top["groups"], ("groups",))
        if not groups:
            self.fail(("groups",), "no groups; add at least one")
        return Suite(
            str(top.get("suite", "own")),
            concepts,
            tuple(self.group(str(name), value) for name, value in groups.items()),
        )

    def group(self, name: str, value: Any) -> PromptGroup:
        """One group; its relation is its name if no other is given."""
        path = ("groups", name)
        known = {"relation", "prompts", "templates", "words", "show", "pictures"}
        entry = self.mapping(value, path, known)
        relation = entry.get("relation", name)
        if not isinstance(relation, str) or relation not in RELATIONS:
            self.unknown((*path, "relation"), "relation", relation, RELATIONS)
        prompts = self.prompts(entry, path)
        pictures = self.count(entry.get("pictures", len(prompts)), (*path, "pictures"))
        return PromptGroup(name, relation, prompts, pictures)

    def prompts(
        self, entry: Mapping[str, Any], path: tuple[Any, ...]
    ) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """`prompts` with the labels they show, or each of `words` in each of `templates`."""
        if "words" in entry:
            words = self.texts(entry["words"], (*path, "words"))
            templates = self.texts(entry.get("templates", "a photo of {}"), (*path, "templates"))
            for i, template in enumerate(templates):
                if template.count("{}") != 1:
                    self.fail(
                        (*path, "templates", i), f"{template!r} needs one '{{}}', for the word"
                    )
            shown = self.texts(entry["show"], (*path, "show")) if "show" in entry else ()
            return tuple((t.replace("{}", w), shown or (w,)) for t in templates for w in words)
        if "prompts" not in entry:
            self.fail(path, "a group needs `prompts`, or `words` and `templates`")
        if isinstance(entry["prompts"], Mapping):
            each = entry["prompts"].items()
            prompts = tuple((str(p), self.texts(w, (*path, "prompts", p))) for p, w in each)
        else:
            shown = self.texts(entry.get("show"), (*path, "show"))
            listed = self.texts(entry["prompts"], (*path, "prompts"), empty=True)
            prompts = tuple((prompt, shown) for prompt in listed)
        if not prompts:
            self.fail((*path, "prompts"), "no prompts; add at least one")
        return prompts

    def mapping(
        self,
        value: Any,
        path: tuple[Any, ...],
        known: Sequence[str] | set[str] = (),
        needed: Sequence[str] | set[str] = (),
    ) -> Mapping[str, Any]:
        """The value, which must be a mapping with only known keys and all needed ones."""
        if not isinstance(value, Mapping):
            self.fail(path, f"keys and values are needed here; got {value!r}")
        for key in value:
            if known and key not in known:
                self.unknown((*path, key), "key", key, sorted(known))
        for key in sorted(needed):
            if key not in value:
                self.fail(path, f"`{key}` is missing")
        return value

    def texts(self, value: Any, path: tuple[Any, ...], *, empty: bool = False) -> tuple[str, ...]:
        """One text or a list of texts, none of them empty unless `empty`."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, Sequence) or not texts:
            self.fail(path, f"a text or a list of texts is needed here; got {value!r}")
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not (empty or text.strip()):
                self.fail((*path, i), f"a text is needed here; got {text!r}")
        return tuple(texts)

    def count(self, value: Any, path: tuple[Any, ...]) -> int:
        """A whole number of 1 or more."""
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail(path, f"a whole number of 1 or more is needed here; got {value!r}")
        return value

    def unknown(self, path: tuple[Any, ...], what: str, name: Any, known: Any) -> NoReturn:
        """Raise because of an unknown name."""
        self.fail(path, unknown(what, str(name), known))

    def fail(self, path: tuple[Any, ...], what: str) -> NoReturn:
        """Raise because of the value under these keys, with its line."""
        prefixes = (path[:k] for k in range(len(path), -1, -1))
        line = next((self.lines[p] for p in prefixes if p in self.lines), None)
        where = f", line {line}" if line else ""
        keys = f" ({' > '.join(map(str, path))})" if path else ""
        raise ErasureError(f"{self.source}{where}{keys}: {what.rstrip('.')}.")


def unknown(what: str, name: str, known: Any) -> str:
    """An error message for an unknown name, with the nearest known ones."""
    near = get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"No {what} named {name!r}.{hint} Known: {', '.join(known)}."
