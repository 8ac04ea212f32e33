"""What is asked of a model when an eraser is measured, and what the pictures may show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from diffusers_erase.errors import ErasureError


Expected = Literal["gone", "kept", "told"]


@dataclass(frozen=True)
class Relation:
    """How prompts are related to the erased concept, and what is to become of them."""

    expected: Expected
    """`gone`: not drawn any more; `kept`: drawn as before; `told`: no judgement."""
    counts_as: Literal["efficacy", "generality", "sensitivity", None]
    """EraseBench's word for it (arXiv 2501.09833), if it has one."""
    says: str


RELATIONS: dict[str, Relation] = {
    "target": Relation("gone", "efficacy", "the concept, by name"),
    "paraphrase": Relation("gone", "generality", "the concept, by synonyms"),
    "subset": Relation("gone", "generality", "special kinds of the concept"),
    "scene": Relation("gone", "generality", "the concept beside something else"),
    "company": Relation("kept", "sensitivity", "what stands beside the concept"),
    "neighbour": Relation("kept", "sensitivity", "its nearest neighbours"),
    "superset": Relation("kept", "sensitivity", "other members of its family, by the family"),
    "binomial": Relation("kept", "sensitivity", "what it usually comes with"),
    "other": Relation("kept", None, "other concepts"),
    "attribute": Relation("kept", None, "attributes of other concepts"),
    "null": Relation("told", None, "no prompt"),
}


@dataclass(frozen=True)
class PromptCase:
    """One picture to be drawn, and what makes it a hit: any of `wanted` is seen."""

    group: str
    prompt: str
    wanted: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Group:
    """Prompts of one relation to the concept: a line of the table."""

    name: str
    relation: str
    prompts: tuple[tuple[str, tuple[str, ...]], ...]
    """Each prompt with the labels of which one is looked for."""
    pictures: int

    def asked(self, seed: int = 0) -> list[PromptCase]:
        """`pictures` of them; prompts take turns, and every picture has a seed of its own."""
        return [
            PromptCase(self.name, *self.prompts[i % len(self.prompts)], seed + i)
            for i in range(self.pictures)
        ]


@dataclass(frozen=True)
class Suite:
    """A protocol: what is asked about an erased concept and about everything else."""

    name: str
    concepts: tuple[str, ...]
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, protocol: Mapping[str, Any]) -> "Suite":
        """The suite that a mapping describes; see docs/measuring.md for its keys.

        Raises:
            ErasureError: something is missing, unknown or empty.
        """
        return _Reader(protocol, {}, "the suite").suite()

    @classmethod
    def read(cls, path: str | Path) -> "Suite":
        """The same from a YAML file.

        Raises:
            ErasureError: as above, with the line.
        """
        content, lines = read_yaml(path)
        return _Reader(content, lines, f"'{path}'").suite()

    def asked(self, seed: int = 0) -> list[PromptCase]:
        """All pictures; those of a group have seeds that follow one another."""
        return [asked for group in self.groups for asked in group.asked(seed)]

    def only(self, *relations: str) -> "Suite":
        """The same suite with the groups of these relations alone."""
        return Suite(
            self.name, self.concepts, tuple(g for g in self.groups if g.relation in relations)
        )


def shipped() -> dict[str, Path]:
    """Name -> file of the protocols that travel with the package: class names, no prompt sets."""
    folder = Path(__file__).parent / "protocols"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


Lines = Mapping[tuple[Any, ...], int]
"""Where in a file the value under these keys stands, from 1."""


def read_yaml(path: str | Path) -> tuple[Any, Lines]:
    """What a YAML file holds, plain values only, and the line of each.

    Raises:
        ErasureError: there is no such file, or it is no YAML.
    """
    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ErasureError(f"'{path}'{line}: {error.problem}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ErasureError(f"Cannot read '{path}': {error}.") from error
    lines: dict[tuple[Any, ...], int] = {}
    _note(node, (), lines)
    return content, lines


def _note(node: Any, path: tuple[Any, ...], lines: dict[tuple[Any, ...], int]) -> None:
    if node is None:
        return
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _note(value, (*path, key.value), lines)
            lines[(*path, key.value)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _note(value, (*path, i), lines)


@dataclass(frozen=True)
class _Reader:
    """Plain values into a suite; every complaint names file and line."""

    content: Any
    lines: Lines
    source: str

    def suite(self) -> Suite:
        """The whole."""
        top = self.mapping(self.content, (), {"suite", "concept", "groups"}, {"concept", "groups"})
        concepts = self.texts(top["concept"], ("concept",))
        groups = self.mapping(top["groups"], ("groups",))
        if not groups:
            self.fail(("groups",), "there is no group")
        found = tuple(self.group(name, value) for name, value in groups.items())
        return Suite(str(top.get("suite", "own")), concepts, found)

    def group(self, name: str, value: Any) -> Group:
        """One group; its relation is its name if it has no other."""
        path = ("groups", name)
        known = {"relation", "prompts", "templates", "words", "show", "pictures"}
        entry = self.mapping(value, path, known)
        relation = entry.get("relation", name)
        if relation not in RELATIONS:
            self.unknown((*path, "relation"), "relation", relation, RELATIONS)
        prompts = self.prompts(entry, path)
        pictures = entry.get("pictures", len(prompts))
        if isinstance(pictures, bool) or not isinstance(pictures, int) or pictures < 1:
            self.fail((*path, "pictures"), f"`pictures` is 1 or more; got {pictures!r}")
        return Group(name, relation, prompts, pictures)

    def prompts(
        self, entry: Mapping[str, Any], path: tuple[Any, ...]
    ) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """`prompts` with what they show, or every word in every template, which shows that word."""
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
            self.fail(path, "a group has `prompts`, or `words` and `templates`")
        if isinstance(entry["prompts"], Mapping):
            each = entry["prompts"].items()
            found = tuple((str(p), self.texts(w, (*path, "prompts", p))) for p, w in each)
        else:
            shown = self.texts(entry.get("show"), (*path, "show"))
            listed = self.texts(entry["prompts"], (*path, "prompts"), empty=True)
            found = tuple((prompt, shown) for prompt in listed)
        if not found:
            self.fail((*path, "prompts"), "there is no prompt")
        return found

    def mapping(
        self,
        value: Any,
        path: tuple[Any, ...],
        known: Sequence[str] | set[str] = (),
        needed: Sequence[str] | set[str] = (),
    ) -> Mapping[str, Any]:
        """Keys and values, of which only some may be there and others must."""
        if not isinstance(value, Mapping):
            self.fail(path, f"here should be keys and values; got {value!r}")
        for key in value:
            if known and key not in known:
                self.unknown((*path, key), "key", key, sorted(known))
        for key in sorted(needed):
            if key not in value:
                self.fail(path, f"`{key}` is missing")
        return value

    def texts(self, value: Any, path: tuple[Any, ...], *, empty: bool = False) -> tuple[str, ...]:
        """One text or several; `empty` if a text may be empty."""
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, Sequence) or not several:
            self.fail(path, f"here should be a text or a list of texts; got {value!r}")
        for i, text in enumerate(several):
            if not isinstance(text, str) or not (empty or text.strip()):
                self.fail((*path, i), f"here should be a text; got {text!r}")
        return tuple(several)

    def unknown(self, path: tuple[Any, ...], what: str, name: Any, known: Any) -> NoReturn:
        """Complain of a name that is none."""
        self.fail(path, unknown(what, str(name), known))

    def fail(self, path: tuple[Any, ...], what: str) -> NoReturn:
        """Complain of what stands under these keys, with its line."""
        line = next((self.lines[p] for p in _upwards(path) if p in self.lines), None)
        where = f", line {line}" if line else ""
        keys = f" ({' > '.join(map(str, path))})" if path else ""
        raise ErasureError(f"{self.source}{where}{keys}: {what.rstrip('.')}.")


def _upwards(path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [path[:k] for k in range(len(path), -1, -1)]


def unknown(what: str, name: str, known: Any) -> str:
    """A sentence about a name that is none, with the nearest that are."""
    near = get_close_matches(name, list(known), n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"No {what} named {name!r}.{meant} Known: {', '.join(known)}."
