"""Commands around the Hub: info, verify, push, pull and find."""

from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_erase.cli.options import Overwrite, Token, opened_model
from diffusers_erase.errors import ErasureError, shown


Source = Annotated[str, typer.Argument(help="A folder or a Hub id.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit.")]


def info(source: Source, revision: Revision = None, token: Token = None) -> None:
    """Print what an eraser erases and how it was made, without downloading its weights."""
    from diffusers_erase.eraser.inspection import inspect_eraser

    found = inspect_eraser(source, revision=revision, token=token)
    config = found.config
    typer.echo(f"{found.source} erases {config.title}")
    for erased in config.concepts:
        answer = erased.target or "the same prompt without it"
        typer.echo(f"  {', '.join(erased.names)} ({erased.kind}), answered as {answer}")
    rows = {
        "recipe": config.recipe,
        "base model": config.base_model or "not recorded",
        "made for": _joined(config.fingerprint),
        "size": f"{found.layers} layers, rank {config.rank}, {found.numbers:,} numbers of type "
        + ", ".join(found.dtypes),
        "format": f"{config.format}: {', '.join(config.payloads)}",
        "made with": _joined(config.versions),
        "commit": found.commit,
        "files": ", ".join(found.files),
    }
    for name, value in rows.items():
        if value:
            typer.echo(f"  {name:12} {value}")
    for name, value in (config.results or {"measured": "not measured"}).items():
        typer.echo(f"  {shown(name):12} {shown(value)}")


def verify(
    source: Source,
    model: Annotated[
        str | None, typer.Option(help="Also that it fits this model: 'playground', folder or id.")
    ] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Check format, files and numbers of an eraser, and that it fits a model if one is named."""
    from diffusers_erase.eraser.inspection import verify_eraser

    for line in verify_eraser(
        source, opened_model(model) if model else None, revision=revision, token=token
    ):
        typer.echo(line)


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of an eraser.")],
    repo_id: Annotated[str, typer.Argument(help="user/name, on the Hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="As a pull request.")] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="`results.jsonl` of an evaluation, for the card.")
    ] = None,
    token: Token = None,
) -> None:
    """Publish an eraser on the Hub."""
    from diffusers_erase.eraser.adapter import EraserAdapter
    from diffusers_erase.eraser.files import images_in
    from diffusers_erase.evaluation.evidence import Evidence

    if not folder.is_dir():
        raise ErasureError(f"There is no folder '{folder}'.")
    address = EraserAdapter.from_pretrained(folder).push_to_hub(
        repo_id,
        private=private or None,
        create_pr=create_pr,
        commit_message=message,
        token=token,
        results=Evidence.read(results).card() if results else None,
        images=images_in(folder),
    )
    typer.echo(f"Pushed {folder}: {address}")


def pull(
    repo_id: Annotated[str, typer.Argument(help="user/name, on the Hub.")],
    output: Annotated[
        Path, typer.Option("--output", "--output-dir", "-o", help="Folder for the eraser.")
    ],
    revision: Revision = None,
    token: Token = None,
    overwrite: Overwrite = False,
) -> None:
    """Download an eraser from the Hub into a folder, its files unchanged."""
    from diffusers_erase.eraser.adapter import check_output
    from diffusers_erase.eraser.files import copied
    from diffusers_erase.storage.atomic import whole_folder

    check_output(output, overwrite=overwrite)
    with whole_folder(output) as draft:
        copied(repo_id, draft, revision=revision, token=token)
    typer.echo(f"Wrote {output}")


def find(
    concept: Annotated[str | None, typer.Option(help="Concept that is erased.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the model.")] = None,
    author: Annotated[str | None, typer.Option(help="Hub user or organisation.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of results.")] = 100,
    token: Token = None,
) -> None:
    """List erasers on the Hub."""
    from diffusers_erase.storage.hub import find_erasers

    found = find_erasers(
        base_model=base_model, concept=concept, author=author, limit=limit, token=token
    )
    for one in found:
        typer.echo(
            f"{one.repo_id}: erases {shown(', '.join(one.concepts)) or '?'} from "
            f"{shown(one.base_model) or '?'}; {one.downloads:,} downloads, {one.likes:,} likes"
        )
    if not found:
        typer.echo("None.")


def _joined(mapping: Any) -> str:
    return ", ".join(f"{shown(name)} {shown(value)}" for name, value in mapping.items())
