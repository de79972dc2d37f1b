"""Commands of the model: train, validate, caption."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.console import Json, Overrides, one_line_errors, only_json, out, print_json, told

_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def add_to(app: typer.Typer) -> None:
    for name, command in (("train", train), ("validate", validate), ("caption", caption)):
        app.command(name)(command)


@one_line_errors
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG|sam-nano", help="A training YAML, or `sam-nano`.")],
    set_: Overrides = [],
    json: Json = False,
) -> None:
    """Train one stage of PAM on shards; `sam-nano` trains the small SAM 2 on drawn shapes."""
    if config == "sam-nano":
        from pipeline.settings import overridden, parse
        from stages.sam2.train import SamNanoConfig, train_sam_nano

        figures = train_sam_nano(parse(overridden({}, set_), SamNanoConfig, "sam-nano"))
        print_json(figures) if json else out.print(figures)
        return
    from model.train import train as run
    from model.train_config import TrainConfig
    from pipeline.settings import load

    with only_json(json), told("perceive.train", silent=json):
        result = run(load(Path(config), TrainConfig, set_))
    facts = {name: str(value) if isinstance(value, Path) else value for name, value in vars(result).items()}
    if json:
        print_json(facts)
    else:
        out.print(
            f"{result.steps} steps in {result.seconds:.0f} s, loss {result.first_loss:.3f} -> {result.last_loss:.3f}"
        )
        out.print(f"checkpoint: {result.checkpoint}")


@one_line_errors
def validate(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A checkpoint's folder, a released PAM's Hugging Face id, or a file of answers to score."),
    ],
    data: Annotated[
        list[str] | None, typer.Argument(help="Validation shards (.tar) or a pack's folder; files of another format.")
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="shards, annotations, pam_jsonl or pam_stream")] = "shards",
    media: Annotated[
        Path, typer.Option(help="The folder of the images or frames, for all formats but shards.")
    ] = Path(),
    task: Annotated[str | None, typer.Option(help="What is asked of `annotations`: label, brief or detailed.")] = None,
    history: Annotated[str, typer.Option(help="What a stream's prompt says of before: reference or own")] = "reference",
    published: Annotated[bool, typer.Option("--published", help="Score as PAM's streaming script does.")] = False,
    judge: Annotated[Path | None, typer.Option(help="A YAML of a teacher that judges too (see the guide).")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Where to write answers and reports.")] = None,
    sam: Annotated[str | None, typer.Option(help="The SAM 2 checkpoint; `nano` for the small one.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many captions a task and language.")] = None,
    max_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 128,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    json: Json = False,
) -> None:
    """Ask a checkpoint for the captions of held-out references and score its answers."""
    from model.evaluate import EvalConfig, References, Scoring
    from model.evaluate import validate as run
    from model.judges import JudgeConfig
    from model.render import as_terminal
    from pipeline.settings import load, parse

    asked = parse({"data": data or [], "kind": kind, "media": media, "task": task}, References, "validate")
    config = parse({"limit": limit, "history": history}, EvalConfig, "validate")
    scoring = Scoring(published=published, judge=load(judge, JudgeConfig) if judge else None)
    options: dict[str, Any] = {"sam": sam, "device": device, "output": to, "max_new_tokens": max_tokens}
    with only_json(json):
        report = run(checkpoint, asked, config=config, scoring=scoring, **options)
    if json:
        print_json(report.model_dump(mode="json"))
        return
    out.print(as_terminal([report]), highlight=False)
    if to is not None:
        out.print(f"report: {to / 'report.html'}", markup=False, highlight=False)


@one_line_errors
def caption(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint's folder, or a released PAM's Hugging Face id.")],
    media: Annotated[Path, typer.Argument(help="An image, or a video.")],
    box: Annotated[str | None, typer.Option(help="x0,y0,x1,y1 in pixels")] = None,
    point: Annotated[list[str], typer.Option(help="x,y in pixels inside the target (x,y,0: outside); repeatable")] = [],
    mask: Annotated[Path | None, typer.Option(help="A picture whose non-black pixels are the target.")] = None,
    task: Annotated[str, typer.Option(help="Of an image: label, explain, brief or detailed.")] = "brief",
    language: Annotated[str, typer.Option(help="en or zh")] = "en",
    stream: Annotated[bool, typer.Option("--stream", help="Caption a video clip after clip.")] = False,
    sample_frames: Annotated[
        int | None, typer.Option(help="Of a stream: so many of the video's frames are used, 0 for all (96).")
    ] = None,
    history_depth: Annotated[
        int | None, typer.Option(help="Of a stream: so many captions before go into the next prompt (1).")
    ] = None,
    carry: Annotated[
        str | None, typer.Option(help="Of a stream: what marks the target in the next clip, mask or box (mask).")
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Where to write the overlay (PNG or MP4).")] = None,
    sam: Annotated[str | None, typer.Option(help="The SAM 2 checkpoint; `nano` for the small one.")] = None,
    max_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 512,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    json: Json = False,
) -> None:
    """Describe one target of an image or video with a trained PAM: its mask drawn, and words."""
    from jobs.captioning import CaptionConfig, caption_image, caption_video, load_pam, prompt_of
    from pipeline.settings import ConfigError, parse

    given = {"sample_frames": sample_frames, "history_depth": history_depth, "carry": carry}
    of_stream: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if of_stream and not stream:
        raise ConfigError(f"{', '.join(of_stream)}: only a stream has these; say --stream")
    if sample_frames == 0:
        of_stream["sample_frames"] = None
    streaming = of_stream if stream else None
    asked = {"task": task, "language": language, "streaming": streaming, "max_tokens": max_tokens}
    config, prompt = parse(asked, CaptionConfig, "caption"), prompt_of(box, point, mask)
    with only_json(json):
        run = caption_image if media.suffix.lower() in _IMAGES else caption_video
        said = run(load_pam(checkpoint, sam, device, config), media, prompt, config, to)
    if json:
        print_json(said)
        return
    for line in said["captions"]:
        out.print("(lost)" if line["text"] is None else line["text"], markup=False, highlight=False)
    out.print(f"overlay: {said['overlay']}", markup=False, highlight=False)
