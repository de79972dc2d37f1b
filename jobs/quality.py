"""Commands about quality and cost: rescue, plan, diff, preview, prompts show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from jobs.console import (
    Budget,
    ConfigOrRun,
    Json,
    Lines,
    Overrides,
    find_config,
    one_line_errors,
    only_json,
    out,
    print_json,
)
from jobs.looking import frame_table

PromptFolder = Annotated[
    Path | None, typer.Option("--prompts", help="A folder whose prompts go before the package's own.")
]


def add_to(app: typer.Typer) -> None:
    for name, command in (("rescue", rescue), ("plan", plan), ("diff", diff), ("preview", preview)):
        app.command(name)(command)
    prompts = typer.Typer(help="The prompts that teachers get.", no_args_is_help=True)
    prompts.command("list")(prompts_list)
    prompts.command("show")(prompts_show)
    app.add_typer(prompts, name="prompts")


@one_line_errors
def rescue(
    config: ConfigOrRun,
    attempts: Annotated[int, typer.Option(help="How often a caption may have been tried in all.")] = 3,
    set_: Overrides = [],
    budget: Budget = None,
    json: Json = False,
) -> None:
    """Mend or ask again for captions that the policy dropped for a reason that can be repaired."""
    from pipeline.build import session_of
    from pipeline.repair import rescue as repair
    from pipeline.spending import dollars

    settings, usd = find_config(config, set_), dollars(budget) if budget else None
    with only_json(json), session_of(settings, None if json else Lines(), budget_usd=usd) as session:
        followed = repair(session, attempts)
    counts = followed.group_by("reason", "repair").agg(captions=pl.len().cast(pl.Int64)).sort("reason", "repair")
    if json:
        print_json({"rescued": counts.to_dicts(), "rows": session.result.done, "pack": session.result.pack_id})
    else:
        out.print(frame_table(counts, "asked again or mended"))


@one_line_errors
def plan(
    config: ConfigOrRun,
    sample: Annotated[int, typer.Option(help="How many requests of each task are rendered and counted.")] = 64,
    probe: Annotated[int, typer.Option(help="Send this many real requests first; the build will not repeat them.")] = 0,
    set_: Overrides = [],
    json: Json = False,
) -> None:
    """Say what the captions of a run will cost in calls, tokens, money, time and disk; asks nobody without --probe."""
    from jobs.planning import plan_run, show_plan

    made = plan_run(find_config(config, set_), sample, probe)
    if json:
        print_json(made.model_dump(mode="json"))
    else:
        show_plan(made)


@one_line_errors
def diff(
    before: ConfigOrRun,
    after: Annotated[Path, typer.Argument(metavar="CONFIG_OR_RUN", help="The run to compare with.")],
    json: Json = False,
) -> None:
    """Compare what two runs decided on the same captions."""
    from pipeline.looking import open_corpus
    from pipeline.output import decisions
    from stages.yields import changes

    sides = []
    for path in (before, after):
        now = open_corpus(find_config(path, []))
        sides.append(decisions(now, now.policy))
    moved = changes(*sides)
    if json:
        print_json(moved.to_dicts())
    else:
        out.print(frame_table(moved, f"{before} -> {after}"))


@one_line_errors
def preview(
    config: Annotated[Path, typer.Argument(help="A configuration with the source.")],
    source: Annotated[str | None, typer.Option(help="The source's name; the first one by default.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="The first source of this format.")] = None,
    to: Annotated[Path, typer.Option("--out", help="The picture.")] = Path("preview.png"),
    limit: Annotated[int, typer.Option(help="How many regions are drawn.")] = 16,
) -> None:
    """Draw the first regions of a source, to see that its annotations are read as they are meant."""
    from pipeline.settings import ConfigError
    from stages.ingest.preview import preview as draw

    sources = find_config(config, []).runtime().sources
    chosen = [one for one in sources if source in (None, one.name) and format_ in (None, one.format)]
    if not chosen:
        there = ", ".join(f"{one.name} ({one.format})" for one in sources)
        raise ConfigError(f"there is no source {source or format_!r}; there are {there}")
    to.write_bytes(draw(chosen[0], limit))
    out.print(f"{chosen[0].name}: {to}")


@one_line_errors
def prompts_list(folder: PromptFolder = None, json: Json = False) -> None:
    """List the prompts that the package carries, and those of a folder of your own."""
    from prompts.loader import load, prompt_ids

    folders = [folder] if folder else []
    rows = [{"id": name, "hash": load(name, folders).hash.hex()} for name in prompt_ids(folders)]
    print_json(rows) if json else out.print(frame_table(pl.DataFrame(rows), "prompts"))


@one_line_errors
def prompts_show(
    prompt: Annotated[str, typer.Argument(help="A prompt, for example brief.en, combined.en or translate.zh")],
    config: Annotated[Path | None, typer.Argument(help="A configuration, to render it for one of its regions.")] = None,
    key: Annotated[str | None, typer.Option(help="A caption's key or a region's, or its first digits.")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="A folder for the request and its pictures.")] = None,
    folder: PromptFolder = None,
    set_: Overrides = [],
) -> None:
    """Print a prompt; with a configuration, as the teacher will get it for a region of its run."""
    from jobs.prompting import rendered_prompt, template_text
    from pipeline.settings import ConfigError

    if config is None:
        if key or to or set_:
            raise ConfigError("--key, --out and --set are of a request: name the configuration whose teacher gets it")
        out.print(template_text(prompt, folder), markup=False, highlight=False, soft_wrap=True)
        return
    own = [f"captions.prompts={folder.resolve()}"] if folder else []
    shown = rendered_prompt(prompt, find_config(config, [*set_, *own]), key, to)
    out.print(shown, markup=False, highlight=False, soft_wrap=True)
