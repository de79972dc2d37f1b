"""What the replies of one segment come to, so that nobody reads them all again to say what was bought.

Totals (`*.sum`, JSON) lie beside a closed segment and its index. They follow from the segment, which never changes:
where they are missing they are counted once and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from schemas.base import Record
from schemas.caption import Outcome
from stages.teachers.segments import Entry

Records = Iterable[tuple[int, int, Entry]]


class Tally(Record):
    """The replies of one back end and model, of one outcome, about one kind of task.

    `cost_usd` is None where none of them has a price.
    """

    teacher: str
    model: str
    outcome: Outcome
    task: str
    replies: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


class Totals(Record):
    """All replies of one file, each counted in one tally."""

    tallies: list[Tally]


class Counting:
    """Counts records that pass through `over`; `totals` are of what has passed."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, Outcome, str], tuple[int, int, int, float | None]] = {}

    def over(self, records: Records) -> Iterator[tuple[int, int, Entry]]:
        for record in records:
            self._add(record[2])
            yield record

    def totals(self) -> Totals:
        fields = tuple(Tally.model_fields)
        rows = [dict(zip(fields, (*name, *sums), strict=True)) for name, sums in self._counts.items()]
        return Totals.model_validate({"tallies": rows})

    def _add(self, entry: Entry) -> None:
        task = "/".join(entry.tags[tag] for tag in ("task", "language") if tag in entry.tags) or "other"
        name = (entry.teacher, entry.model, entry.outcome, task)
        replies, prompt, completion, cost = self._counts.get(name, (0, 0, 0, None))
        usage = entry.usage
        if usage.cost_usd is not None:
            cost = (cost or 0.0) + usage.cost_usd
        sums = (replies + 1, prompt + usage.prompt_tokens, completion + usage.completion_tokens, cost)
        self._counts[name] = sums


def totals_of(records: Records) -> Totals:
    """The totals of one file's records."""
    counting = Counting()
    for _ in counting.over(records):
        pass
    return counting.totals()
