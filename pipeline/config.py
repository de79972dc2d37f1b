"""The configuration of a run: the stages' own settings, composed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipeline.corpus import Asked
from pipeline.settings import ConfigError, expanded, load, resolve_path
from pipeline.work import RunnerConfig
from schemas.base import PathStr, Record
from stages.chunk import ChunkConfig
from stages.distill.config import CaptionsConfig
from stages.ingest.base import SourceConfig
from stages.ingest.recipes import recipes, with_recipe
from stages.pack.config import PackConfig
from stages.refine.config import RefineConfig
from stages.score.groups import ScoreConfig
from stages.select import SelectConfig
from stages.teachers.config import TeacherConfig

BUILT_IN = Path(__file__).resolve().parents[1] / "configs"


class EngineConfig(Record):
    """A run configuration. `run` is the folder of the run, a local path or any fsspec URL."""

    run: PathStr
    sources: tuple[SourceConfig, ...] = ()
    select: SelectConfig = SelectConfig()
    refine: RefineConfig = RefineConfig()
    chunk: ChunkConfig = ChunkConfig()
    teacher: TeacherConfig = TeacherConfig()
    captions: CaptionsConfig = CaptionsConfig()
    score: ScoreConfig = ScoreConfig()
    policy: PathStr = "policy/default.yaml"
    pack: PackConfig = PackConfig()
    runner: RunnerConfig = RunnerConfig()
    storage_options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _distinct_names(self) -> EngineConfig:
        names = [source.name for source in self.sources]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are named {', '.join(doubled)}; give each its own `name`")
        return self

    @model_validator(mode="after")
    def _translations_have_a_source(self) -> EngineConfig:
        if self.captions.zh == "translate":
            if self.teacher.backend == "measured":
                raise ValueError("captions.zh: the measured teacher cannot translate; name a model, or use `pixels`")
            for name, wants in {"captions": self.default_asked(), **self.asked()}.items():
                if "zh" in wants.languages and "en" not in wants.languages:
                    raise ValueError(f"captions.zh: {name} asks for zh by translation and not for en; add en to it")
        return self

    def asked(self) -> dict[str, Asked]:
        """What is asked of the sources that name tasks, languages or hints of their own, in `sources` or `captions`."""
        wants: dict[str, Asked] = {}
        for source in self.sources:
            mine, general = source.captions, self.captions.sources.get(source.name)
            tasks = mine.tasks or (general.tasks if general else None)
            if tasks is None and mine.imported is not None:
                tasks = ()
            languages = mine.languages or (general.languages if general else None)
            if tasks is not None or languages is not None or mine.hints is not None:
                wants[source.name] = Asked(
                    tasks=tuple(tasks) if tasks is not None else None,
                    languages=tuple(languages or self.captions.languages),
                    hints=mine.hints,
                )
        return wants

    def default_asked(self) -> Asked:
        """What is asked of all other sources."""
        return Asked(tuple(self.captions.tasks), tuple(self.captions.languages))

    def runtime(self) -> EngineConfig:
        """The configuration with the secrets of its storage options read from the environment; never written."""
        sources = tuple(s.model_copy(update={"storage_options": expanded(s.storage_options)}) for s in self.sources)
        return self.model_copy(update={"storage_options": expanded(self.storage_options), "sources": sources})


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> EngineConfig:
    """A run configuration from its YAML file, paths resolved, recipes filled in. Raises `ConfigError`."""
    path = Path(path)
    config = load(path, EngineConfig, overrides)
    return _with_recipes(_with_paths(config, path.resolve().parent))


def _with_recipes(config: EngineConfig) -> EngineConfig:
    """What the configuration leaves open of a source as its format's recipe has it (`configs/sources.yaml`).

    Tasks only where neither the source nor `captions` names any; a run's `config.yaml` then holds all of it.
    """
    table, captions = recipes(), config.captions
    sources = []
    for source in config.sources:
        own = captions.sources.get(source.name)
        named = "tasks" in captions.model_fields_set or (own is not None and own.tasks is not None)
        recipe = table.get(source.format)
        sources.append(source if recipe is None else with_recipe(source, recipe, tasks=not named))
    select = config.select
    if select.benchmark_splits is None:
        known = {s.name: table[s.format].benchmarks for s in sources if s.format in table}
        select = select.model_copy(update={"benchmark_splits": {name: found for name, found in known.items() if found}})
    return config.model_copy(update={"sources": tuple(sources), "select": select})


def _with_paths(config: EngineConfig, base: Path) -> EngineConfig:
    """Paths of sources and the policy made absolute; a policy that is not there is looked for among the built-in."""
    sources = tuple(
        source.model_copy(
            update={
                "annotations": resolve_path(source.annotations, base)
                if isinstance(source.annotations, str)
                else {role: resolve_path(path, base) for role, path in source.annotations.items()},
                "media": resolve_path(source.media, base)
                if isinstance(source.media, str) and source.media
                else tuple(resolve_path(path, base) for path in source.media_roots if path),
            }
        )
        for source in config.sources
    )
    return config.model_copy(update={"sources": sources, "policy": find_policy(config.policy)})


def find_policy(path: str) -> str:
    """The policy file: as given, or by name among the policies that the package carries. Raises `ConfigError`."""
    if "://" in path or Path(path).is_file():
        return path
    built_in = BUILT_IN / "policy" / Path(path).name
    if built_in.is_file():
        return str(built_in)
    known = ", ".join(sorted(file.name for file in (BUILT_IN / "policy").glob("*.yaml")))
    raise ConfigError(f"policy {path}: there is no such file; built in are {known}")
