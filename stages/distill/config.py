"""Which captions a run asks for, and how."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.base import Record
from schemas.caption import Language, Task
from stages.views.config import ViewConfig
from stages.views.images import IMAGE_VIEWS
from stages.views.storyboard import ClipViewConfig

IMAGE_TASKS: tuple[Task, ...] = ("label", "explain", "brief", "detailed")
VIDEO_TASKS: tuple[Task, ...] = ("video", "stream")
_VIDEO_VIEWS = ("storyboard", "clip_frames")


class SourceCaptions(Record):
    """What one source gets instead of the run's own `tasks` and `languages`."""

    tasks: tuple[Task, ...] | None = None
    languages: tuple[Language, ...] | None = None


class CaptionsConfig(Record):
    """The captions of a run.

    `sources` overrides tasks and languages by the name of a source. `views` overrides a prompt's own views by task.
    `combined` asks for the image tasks of a region in one request, which each task then reads; `history` is how many
    earlier event captions a streaming prompt carries (PAM uses one). `hints` shows the teacher what the source says of
    the target. `zh` says where Chinese captions come from: `pixels`, like English ones, or `translate`: the English
    caption, translated by the teacher and checked. `prompts` is a folder whose prompts go before the package's.
    `pictures` and `clips` say how views are drawn.
    """

    tasks: tuple[Task, ...] = IMAGE_TASKS
    languages: tuple[Language, ...] = ("en",)
    sources: dict[str, SourceCaptions] = {}
    views: dict[Task, tuple[str, ...]] = {}
    combined: bool = False
    history: int = Field(default=1, ge=0, le=16)
    hints: bool = True
    zh: Literal["pixels", "translate"] = "pixels"
    prompts: str | None = None
    pictures: ViewConfig = ViewConfig()
    clips: ClipViewConfig = ClipViewConfig()

    @model_validator(mode="after")
    def _known_views(self) -> Self:
        for task, views in self.views.items():
            allowed = _VIDEO_VIEWS if task in VIDEO_TASKS else IMAGE_VIEWS
            unknown = [view for view in views if view not in allowed]
            if unknown or not views:
                raise ValueError(f"captions.views.{task}: {list(views)}; choose from {', '.join(allowed)}")
        return self

    def wanted(self, source: str) -> list[tuple[Task, Language]]:
        """The task and language pairs that regions of a source get."""
        own = self.sources.get(source, SourceCaptions())
        tasks = self.tasks if own.tasks is None else own.tasks
        languages = self.languages if own.languages is None else own.languages
        return [(task, language) for task in tasks for language in languages]

    def translates(self, language: Language) -> bool:
        """Whether captions in this language are translations."""
        return language == "zh" and self.zh == "translate"

    def pairs(self) -> list[tuple[Task, Language]]:
        """Every task and language pair that some source may get, each once."""
        everything = self.wanted("")
        for source in self.sources:
            everything += self.wanted(source)
        return list(dict.fromkeys(everything))
