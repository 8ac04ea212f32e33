"""Commands that measure: evaluate, attack, graph and continual."""

from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_erase.cli.options import ModelName, Overwrite, Seed, device, opened_model
from diffusers_erase.errors import ErasureError


Erasers = Annotated[list[str], typer.Argument(help="Folders or Hub ids; measured together.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the report.")]
SuiteName = Annotated[
    str,
    typer.Option(
        help="'card', 'ripple', 'objects' (on the playground), or a YAML file of your own."
    ),
]
DetectorName = Annotated[
    str | None,
    typer.Option(
        help="'judge' (the playground's), 'classifier:<model>', 'clip:<model>' with the suite's "
        "labels, or 'nudenet'; <model> is a Hub id or a folder."
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Sampling steps.")]
Guidance = Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")]
Batch = Annotated[int, typer.Option(min=1, help="Pictures in a batch.")]
Pictures = Annotated[
    int | None, typer.Option(min=1, help="Of the target, or of each concept of a graph.")
]
Attempts = Annotated[int, typer.Option(min=1, help="Pictures that an attack tries to bring back.")]


def evaluate(
    erasers: Erasers,
    out: Out = Path("evaluation"),
    suite: SuiteName = "card",
    model: ModelName = "playground",
    attack: Annotated[
        list[str] | None, typer.Option(help="Also try this attack; may be repeated.")
    ] = None,
    detector: DetectorName = None,
    pictures: Pictures = None,
    attempts: Attempts = 16,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 32,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Measure an eraser: the concept, other concepts, drift of scores, and attacks.

    A run that was stopped goes on where it was if it is called again.
    """
    from diffusers_erase.attacks import attack_named
    from diffusers_erase.eraser.adapter import EraserAdapter
    from diffusers_erase.evaluation.evidence import evaluate as measure
    from diffusers_erase.evaluation.report import KNOWN, RESULTS, TABLE, sheets_of, write_report
    from diffusers_erase.runtime.plugin import load_erasure
    from diffusers_erase.storage.atomic import check_folder

    check_folder(out, overwrite=overwrite, marker=RESULTS, known=KNOWN)
    concepts = EraserAdapter.from_pretrained(erasers[0]).config.concepts
    tried = [attack_named(name, concepts[0].concept) for name in attack or ()]
    asked = suite_named(suite, [each.name for each in concepts], model, pictures)
    labels = {label for g in asked.groups for _, wanted in g.prompts for label in wanted}
    runner = _runner(
        model, detector, tuple(sorted(labels)), out, sampling_of(model, steps, guidance, batch)
    )
    for source in erasers:
        load_erasure(runner.sampler.pipe, source, name=source)
    evidence = measure(runner, asked, attacks=tried, attempts=attempts, seed=seed)
    if runner.main:
        write_report(evidence, out, sheets_of(runner, asked, seed))
        typer.echo((out / TABLE).read_text(encoding="utf-8").rstrip())
        typer.echo(f"Everything is in {out}/; {_work(out)} may go, or make the next run quicker.")


def attack(
    erasers: Erasers,
    out: Out = Path("attacks"),
    name: Annotated[
        list[str] | None, typer.Option("--attack", help="May be repeated; all if left out.")
    ] = None,
    suite: SuiteName = "card",
    model: ModelName = "playground",
    detector: DetectorName = None,
    pictures: Pictures = None,
    attempts: Attempts = 16,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 32,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Attack an eraser; every attack has a control on the base model.

    What is kept is measured too: a broken model resists every attack. Found prompts are not
    written down.
    """
    from diffusers_erase.attacks import ATTACKS

    further = (detector, pictures, attempts, steps, guidance, batch, seed, overwrite)
    evaluate(erasers, out, suite, model, name or list(ATTACKS), *further)


def graph(
    out: Out = Path("graph"),
    protocol: Annotated[
        Path | None,
        typer.Option(
            help="'netfive', or a YAML file with `families`; the playground's if left out."
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="How each concept is erased.")] = "closed-form",
    model: ModelName = "playground",
    detector: DetectorName = None,
    pictures: Pictures = None,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 32,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Erase each concept, and measure the harm to every other.

    A run that was stopped goes on where it was if it is called again.
    """
    from dataclasses import replace

    from diffusers_erase.concepts import Concept, Vocabulary
    from diffusers_erase.evaluation.graph import concept_graph
    from diffusers_erase.evaluation.graph_report import KNOWN, RESULTS, SUMMARY, write_graph
    from diffusers_erase.making.api import erase
    from diffusers_erase.making.request import as_recipe
    from diffusers_erase.playground import SYNONYMS
    from diffusers_erase.playground.protocols import likeness
    from diffusers_erase.storage.atomic import check_folder

    check_folder(out, overwrite=overwrite, marker=RESULTS, known=KNOWN)
    as_recipe(recipe)
    concepts = _concepts(protocol, model)
    concepts = replace(concepts, pictures=pictures or concepts.pictures)
    own = model == "playground"
    erased = [Concept(w, synonyms=SYNONYMS.get(w, ()) if own else ()) for w in concepts.names]
    sampling = sampling_of(model, steps, guidance, batch)
    runner = _runner(model, detector, concepts.names, out, sampling)

    def make(concept: Concept) -> Any:
        words = Vocabulary(tuple(w for w in concepts.names if w != concept.name))
        return erase(
            runner.sampler.pipe,
            concept,
            recipe=recipe,
            vocabulary=words,
            seed=seed,
            progress=False,
            check=False,
        )

    way = f"{recipe}, seed {seed}, vocabulary {', '.join(concepts.names)}"
    found = concept_graph(runner, concepts, make, erase=erased, way=way, seed=seed)
    near = likeness() if own and set(concepts.names) <= set(likeness()) else None
    if runner.main:
        write_graph(found, out, likeness=near)
        typer.echo((out / SUMMARY).read_text(encoding="utf-8").split("| erased |")[0].rstrip())
        typer.echo(f"Everything is in {out}/; {_work(out)} may go, or make the next run quicker.")


def continual(
    erasers: Annotated[list[str], typer.Argument(help="Erasers in the order of loading.")],
    protocol: Annotated[
        Path | None, typer.Option(help="YAML with `families`; the playground's if left out.")
    ] = None,
    out: Out = Path("continual.json"),
    model: ModelName = "playground",
    detector: DetectorName = None,
    pictures: Pictures = None,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 32,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Load erasers one after another, and measure all concepts after each."""
    import json
    from dataclasses import replace

    from diffusers_erase.eraser.adapter import EraserAdapter
    from diffusers_erase.evaluation.continual import continual as timeline

    if out.exists() and not overwrite:
        raise ErasureError(f"'{out}' exists already; choose another file or pass --overwrite.")
    concepts = _concepts(protocol, model)
    concepts = replace(concepts, pictures=pictures or concepts.pictures)
    loaded: dict[str, EraserAdapter] = {}
    for source in erasers:
        eraser = EraserAdapter.from_pretrained(source)
        if eraser.config.title in loaded:
            raise ErasureError(f"'{source}' erases '{eraser.config.title}' a second time.")
        loaded[eraser.config.title] = eraser
    sampling = sampling_of(model, steps, guidance, batch)
    runner = _runner(model, detector, concepts.names, out, sampling)
    found = timeline(runner, concepts, loaded, seed=seed)
    if runner.main:
        from diffusers_erase.storage.atomic import whole_file

        with whole_file(out) as draft:
            draft.write_text(json.dumps(found.to_list(), indent=1) + "\n", encoding="utf-8")
        for line in found.to_list():
            shares = [
                "not measured" if line[key] is None else f"{100 * line[key]['value']:.1f} %"
                for key in ("unlearned", "kept")
            ]
            typer.echo(f"after {line['erased']:12} gone {shares[0]:>7}, kept {shares[1]:>7}")


def suite_named(name: str, concepts: list[str], model: str, pictures: int | None) -> Any:
    """The suite in a YAML file, of the playground about these concepts, or of the package."""
    from diffusers_erase.evaluation.suites import Suite, shipped_protocols, unknown
    from diffusers_erase.playground.protocols import PROTOCOLS, protocol

    if Path(name).suffix in (".yaml", ".yml"):
        return Suite.read(name)
    if name not in PROTOCOLS:
        shipped = {k: path for k, path in shipped_protocols().items() if k != "netfive"}
        if name in shipped:
            return Suite.read(shipped[name])
        raise ErasureError(f"{unknown('suite', name, (*PROTOCOLS, *shipped))} Or name a YAML file.")
    if model != "playground":
        raise ErasureError(
            f"The suite '{name}' is about the playground; for '{model}' name a YAML file, see "
            "docs/measuring.md."
        )
    try:
        return Suite.of(protocol(name, concepts, pictures=pictures or 64))
    except ValueError as error:
        raise ErasureError(str(error)) from error


def _concepts(protocol: Path | None, model: str) -> Any:
    from diffusers_erase.evaluation.graph import ConceptSet
    from diffusers_erase.evaluation.suites import shipped_protocols
    from diffusers_erase.playground.protocols import graph_protocol

    if protocol is not None:
        return ConceptSet.read(shipped_protocols().get(str(protocol), protocol))
    if model != "playground":
        raise ErasureError(
            "Name a `--protocol` with the concepts to look at ('netfive', or a YAML file); see "
            "docs/measuring.md."
        )
    return ConceptSet.of(graph_protocol())


def sampling_of(model: str, steps: int | None, guidance: float | None, batch: int) -> Any:
    """The settings given, or defaults; the playground needs fewer steps."""
    from diffusers_erase.evaluation.sampler import Sampling, fast_precision

    if model == "playground":
        precision = fast_precision()
        return Sampling(steps or 10, 5.0 if guidance is None else guidance, precision, batch)
    return Sampling(steps or 25, 7.5 if guidance is None else guidance, batch=batch)


def _runner(
    model: str, detector: str | None, labels: tuple[str, ...], out: Path, sampling: Any
) -> Any:
    from accelerate import Accelerator

    from diffusers_erase.evaluation.runner import Runner
    from diffusers_erase.evaluation.sampler import PipelineSampler

    seen_by = detector_of(detector or ("judge" if model == "playground" else ""), labels)
    sampler = PipelineSampler(opened_model(model), seen_by, sampling)
    return Runner(sampler, _work(out), Accelerator(cpu=device() == "cpu"))


def detector_of(name: str, labels: tuple[str, ...]) -> Any:
    """The detector of that name; `judge` is the playground's."""
    from diffusers_erase.evaluation.detectors import detector_named
    from diffusers_erase.playground import load_judge

    return detector_named(name, labels, {"judge": lambda model, labels: load_judge()})


def _work(out: Path) -> Path:
    """The work folder of a run: its judgements and erasers."""
    return out.with_name(f"{out.name}.run")
