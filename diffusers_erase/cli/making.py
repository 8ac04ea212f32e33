"""Commands that make erasers: train, edit and stack."""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_erase.cli.options import (
    AllowWeak,
    CheckOption,
    KindName,
    ModelName,
    Overwrite,
    PriorSource,
    Protect,
    Seed,
    Synonym,
    Token,
    asked_concepts,
    device,
    kept_folder,
    opened_model,
    own_words,
    without_denoiser,
)
from diffusers_erase.errors import ErasureError, require_choice


Robust = Annotated[
    bool, typer.Option("--robust", help="surgical-remove: trains against learnt words.")
]


def train(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "--output-dir", "-o", help="Folder for the eraser, or for all of them."
        ),
    ],
    concept: Annotated[
        list[str] | None,
        typer.Option(
            help="What to erase; repeat it for one eraser of more concepts. A name with a comma "
            "stands in double quotes of its own: '\"Paris, Texas\"'."
        ),
    ] = None,
    concepts_file: Annotated[
        Path | None,
        typer.Option(
            help="One eraser a line: 'concept, synonym -> target', a name with a comma in double "
            "quotes; spread over processes."
        ),
    ] = None,
    model: ModelName = "playground",
    target: Annotated[
        str | None,
        typer.Option(help="What to draw instead; else the recipe chooses, or the prompt without."),
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Words of other concepts, one a line; the playground has its own."),
    ] = None,
    kind: KindName = None,
    synonym: Synonym = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A prompt that must stay; may be repeated.")
    ] = None,
    protect: Protect = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="surgical-age (the default), surgical-age-sd, age, age-table, all-but-one, "
            "anti-editing, esd, receler, realera-trained, stereo, surgical-remove or replace."
        ),
    ] = None,
    robust: Robust = False,
    steps: Annotated[
        int | None,
        typer.Option("--steps", "--max-train-steps", help="If not the recipe's, as all below."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--train-batch-size", help="Latents in a training step.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of Adam.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA.")] = None,
    gradient_accumulation_steps: Annotated[
        int | None, typer.Option(help="Minibatches a step, where memory is short.")
    ] = None,
    refresh: Annotated[
        int | None,
        typer.Option(help="Sample anew by the student after so many steps; 0 for never."),
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    mixed_precision: Annotated[str, typer.Option(help="'no', 'bf16' or 'fp16'.")] = "no",
    report_to: Annotated[str | None, typer.Option(help="A tracker, such as tensorboard.")] = None,
    logging_dir: Annotated[Path, typer.Option(help="Folder for the tracker.")] = Path("logs"),
    prior: PriorSource = None,
    check: CheckOption = True,
    allow_weak: AllowWeak = False,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train an eraser, or a file of them, and save it."""
    from dataclasses import replace

    from accelerate import Accelerator

    from diffusers_erase.cli.training_runs import TrainingRun, read_runs, run_all, with_numbers
    from diffusers_erase.concepts import Vocabulary
    from diffusers_erase.making.request import as_recipe
    from diffusers_erase.models.model import Model
    from diffusers_erase.training.recipes import default_recipe

    if bool(concept) == (concepts_file is not None):
        raise ErasureError("Precisely one of --concept and --concepts-file must be given.")
    if robust and recipe:
        raise ErasureError("--robust chooses the recipe; leave out --recipe, or --robust.")
    recipe = "surgical-remove" if robust else recipe
    options: dict[str, Any] = {
        "keep": keep or (),
        "protect": protect or (),
        "seed": seed,
        "target": target,
        "check": check,
        "allow_weak": allow_weak,
        "prior": prior,
        **({"vocabulary": Vocabulary.read(vocabulary)} if vocabulary else {}),
    }
    if concepts_file is not None:
        runs = read_runs(concepts_file, output, kind, options)  # type: ignore[arg-type]
    else:
        asked = _concepts(concept or (), kind, synonym, options.get("vocabulary"))
        runs = [TrainingRun(asked, output, options)]
    everything = [concept for run in runs for concept in run.concepts]
    words = options.get("vocabulary") or own_words(model, everything)
    pipe = None if recipe else opened_model(model)
    numbers = with_numbers(
        as_recipe(recipe) if recipe else default_recipe(Model.of(pipe), words),
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        rank=rank,
        accumulate=gradient_accumulation_steps,
        refresh=refresh,
    )
    for k, run in enumerate(runs):
        own = {"vocabulary": own_words(model, run.concepts), **run.options, "recipe": numbers}
        runs[k] = replace(run, options=own)
    _check_tools(numbers, mixed_precision, gradient_checkpointing, report_to)
    if resume and concepts_file is not None:
        runs = [run for run in runs if not run.done]
    for run in runs:
        run.check(overwrite=overwrite, resume=resume)
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        log_with=report_to,
        project_dir=logging_dir if report_to else None,
        cpu=device() == "cpu",
    )
    accelerator.wait_for_everyone()
    pipe = opened_model(model) if pipe is None else pipe
    if gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    if report_to:
        accelerator.init_trackers("diffusers-erase")
    how = {"overwrite": overwrite, "resume": resume, "accelerator": accelerator}
    run_all(runs, pipe, say=typer.echo, **how)
    accelerator.end_training()


def edit(
    output: Annotated[
        Path, typer.Option("--output", "--output-dir", "-o", help="Folder for the eraser.")
    ],
    concept: Annotated[
        list[str], typer.Option(help="What to erase; repeat it for one eraser of more concepts.")
    ],
    model: ModelName = "playground",
    target: Annotated[
        str | None, typer.Option(help="What to draw instead; else the recipe chooses.")
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Words to keep, one a line; else those the tokenizer knows."),
    ] = None,
    kind: KindName = None,
    synonym: Synonym = None,
    captions: Annotated[Path | None, typer.Option(help="Prompts to keep, one a line.")] = None,
    protect: Protect = None,
    recipe: Annotated[
        str,
        typer.Option(help="closed-form, uce, uce-tensor, rece, speed, mace-cfr, realera or leace."),
    ] = "closed-form",
    rank: Annotated[
        int | None, typer.Option(help="Rank of the eraser, if not the recipe's.")
    ] = None,
    portable: Annotated[
        bool,
        typer.Option("--portable", help="A text map alone, for all models with this text encoder."),
    ] = False,
    prior: PriorSource = None,
    check: CheckOption = True,
    allow_weak: AllowWeak = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Solve for an eraser in closed form; with --no-check it needs no UNet."""
    from diffusers_erase.cli.training_runs import summary_of, with_numbers
    from diffusers_erase.concepts import Vocabulary
    from diffusers_erase.eraser.adapter import check_output
    from diffusers_erase.making.by_algebra import solve_eraser
    from diffusers_erase.making.request import Request, as_edit, require_general
    from diffusers_erase.making.statistics import Statistics
    from diffusers_erase.making.trying import make_checked
    from diffusers_erase.models.model import Model
    from diffusers_erase.models.weight_files import read_weights
    from diffusers_erase.training.targets import as_target

    words = Vocabulary.read(vocabulary) if vocabulary else None
    request = Request(
        concepts=_concepts(concept, kind, synonym, words),
        recipe=with_numbers(as_edit(recipe), rank=rank),
        vocabulary=words,
        target=as_target(target) if target is not None else None,
        keep=Vocabulary.read(captions).words if captions else (),
        protect=tuple(protect or ()),
        seed=seed,
    )
    if prior is not None:
        require_general(request)
    check_output(output, overwrite=overwrite)
    pipe = Model.of(opened_model(model, **({} if check else without_denoiser(model))))
    known = portable or model == "playground" or check
    weights = None if known else read_weights(model)
    sources: dict[str, Any] = {"prior": prior, "say": typer.echo}
    statistics = cache(lambda: Statistics.of(pipe, kept_folder(), **sources))
    make = partial(solve_eraser, pipe, weights=weights, statistics=statistics)
    eraser = (
        make_checked(make, pipe, request, allow_weak=allow_weak, say=typer.echo)
        if check
        else make(request)
    )
    (eraser.portable if portable else eraser).save_pretrained(output, overwrite=overwrite)
    typer.echo(summary_of(output, eraser))


def prior(
    model: ModelName = "playground",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "--output-dir",
            "--out",
            "-o",
            help="Folder for the file; if omitted, the one where `edit` finds it by itself.",
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Publish it on the Hub as well, as user/name.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    token: Token = None,
) -> None:
    """Compute statistics of a model's text encoder, which then make every eraser quicker."""
    from diffusers_erase.making.priors import TextPrior

    made = TextPrior.of(opened_model(model, **without_denoiser(model)))
    typer.echo(f"Wrote {made.save(output or kept_folder())}")
    if push:
        address = made.push_to_hub(push, private=private or None, token=token)
        typer.echo(f"Pushed: {address}")


def stack(
    erasers: Annotated[list[str], typer.Argument(help="Folders or Hub ids.")],
    output: Annotated[
        Path, typer.Option("--output", "--output-dir", "-o", help="Folder for the stacked eraser.")
    ],
    fusion: Annotated[
        str, typer.Option(help="'sum', which is exact, or 'gram', in which they interfere less.")
    ] = "sum",
    strength: Annotated[
        list[float] | None, typer.Option(help="One for each eraser, in their order; 1 if omitted.")
    ] = None,
    protect: Protect = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Words that fusion keeps, one a line.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model whose text encoder fusion and protection use.")
    ] = "playground",
    rank: Annotated[
        int | None, typer.Option(help="Largest; as high as need be if omitted.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Combine erasers into one."""
    from diffusers_erase.concepts import Vocabulary
    from diffusers_erase.eraser.adapter import check_output
    from diffusers_erase.making.stacked import stack as stacked

    check_output(output, overwrite=overwrite)
    asks = fusion == "gram" or protect
    together = stacked(
        erasers,
        opened_model(model, **without_denoiser(model)) if asks else None,
        fusion=fusion,  # type: ignore[arg-type]
        strengths=strength or None,
        protect=protect or (),
        vocabulary=Vocabulary.read(vocabulary) if vocabulary else (),
        rank=rank,
    )
    together.save_pretrained(output, overwrite=overwrite)
    config, kept = together.config, together.config.parameters["kept_energy"]
    typer.echo(f"Wrote {output}: erases {config.title}; rank {config.rank}, {kept:.1%} kept.")


def _concepts(
    names: Sequence[str], kind: str | None, synonyms: Sequence[str] | None, words: Any
) -> tuple[Any, ...]:
    """The concepts of these names; the synonyms belong to the first."""
    from dataclasses import replace

    again = "repeat --concept for each"
    first, *others = asked_concepts(names, kind, words, several=again)
    return (replace(first, synonyms=tuple(synonyms or ())), *others)


def _check_tools(recipe: Any, precision: str, checkpointing: bool, tracker: str | None) -> None:
    """Raise for an unknown precision or tracker, and for any of them if the recipe is solved."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    from diffusers_erase.cli.training_runs import refuse_unused
    from diffusers_erase.editing.recipes import Edit

    require_choice("mixed precision", precision, ("no", "bf16", "fp16"))
    if isinstance(recipe, Edit):
        given = {
            "mixed_precision": precision != "no",
            "gradient_checkpointing": checkpointing,
            "report_to": tracker,
        }
        refuse_unused(recipe, [name for name, value in given.items() if value])
    if tracker is not None:
        require_choice("tracker", tracker, LOGGER_TYPE_TO_CLASS)
