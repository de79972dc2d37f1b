"""What the report shows, as plain frozen records: everything that the page needs, nothing that it must fetch."""

from __future__ import annotations

from schemas.base import Record


class FunnelRow(Record):
    """A stage's account: `rows_in` = ok + filtered + failed + blocked + pending. `source` is None for all of them."""

    stage: str
    source: str | None = None
    rows_in: int
    ok: int = 0
    filtered: int = 0
    failed: int = 0
    blocked: int = 0
    pending: int = 0


class ReasonRow(Record):
    """How many rows of a stage did not go on for one reason."""

    stage: str
    status: str
    reason: str
    source: str | None = None
    task: str | None = None
    language: str | None = None
    count: int


class YieldRow(Record):
    """How many captions of a source and task a rule spoke against (a caption may be named by several rules)."""

    rule: str
    source: str
    task: str
    judged: int
    rejected: int


class Histogram(Record):
    """Counts of values between consecutive `edges` (one more than counts), for one group of rows.

    `bounds` are the policy's limits to it: the reason that it gives, with the kind of bound, and the value.
    """

    name: str
    group: str
    edges: list[float]
    counts: list[int]
    missing: int = 0
    bounds: list[tuple[str, float]] = []


class Picture(Record):
    """A thumbnail as a data URI, with SVG path data in its own pixels: the mask, and the source's box."""

    uri: str
    width: int
    height: int
    mask: str = ""
    box: str = ""
    note: str = ""


class CaptionCard(Record):
    """One caption of a shown region with its fate."""

    task: str
    language: str
    event_index: int
    text: str
    status: str
    reasons: list[str] = []
    outcome: str | None = None


class EventBar(Record):
    """One event on the timeline, in seconds."""

    index: int
    start_s: float
    end_s: float
    absent: bool
    motion: str = ""


class RegionCard(Record):
    """One region of the gallery. `kept` says whether any of its captions is."""

    region_key: str
    source: str
    source_id: str
    label: str
    kind: str
    kept: bool
    facts: dict[str, str] = {}
    tasks: list[str] = []
    reasons: list[str] = []
    picture: Picture | None = None
    storyboard: list[Picture] = []
    duration_s: float = 0.0
    events: list[EventBar] = []
    captions: list[CaptionCard] = []


class CostRow(Record):
    """Money and tokens of one teacher: planned before, spent until now. None where nobody said."""

    name: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    planned_usd: float | None = None
    actual_usd: float | None = None


class RatePoint(Record):
    """Rows that a stage had finished at a moment, in seconds since its first."""

    stage: str
    seconds: float
    rows: int


class ShardRow(Record):
    """One shard of the current pack."""

    shard: str
    split: str
    num_samples: int
    num_captions: int
    num_bytes: int
    sha256: str


class ReportData(Record):
    """The whole page."""

    title: str
    run: str
    made: str = ""
    funnel: list[FunnelRow] = []
    reasons: list[ReasonRow] = []
    yields: list[YieldRow] = []
    histograms: list[Histogram] = []
    lengths: list[Histogram] = []
    labels: list[tuple[str, int]] = []
    costs: list[CostRow] = []
    rates: list[RatePoint] = []
    shards: list[ShardRow] = []
    regions: list[RegionCard] = []
    notes: list[str] = []
