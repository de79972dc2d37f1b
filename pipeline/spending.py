"""What a run's replies have cost, by its ledger, beside what was planned."""

from __future__ import annotations

import re
import time

from pipeline.config import EngineConfig
from pipeline.engine import ledger_url
from pipeline.plan import Plan
from pipeline.report.data import CostRow
from pipeline.settings import ConfigError
from pipeline.tables import Run
from schemas.base import Record
from schemas.caption import Usage
from stages.teachers import cache
from stages.teachers.ledger import Ledger

PLAN_FILE = "plan.json"
_MONEY = re.compile(r"\s*(?:\$|usd)?\s*(?P<amount>\d+(?:\.\d+)?)\s*(?:\$|usd)?\s*", re.IGNORECASE)


class KeptPlan(Record):
    """A plan as it is kept with its run: when it was made, and what the ledger had cost by then."""

    made: str
    spent_usd: float
    plan: Plan


def dollars(text: str) -> float:
    """The amount of `50USD`, `$50` or `50`. Raises `ConfigError`."""
    found = _MONEY.fullmatch(text)
    if found is None:
        raise ConfigError(f"--budget {text}: write an amount in US dollars, for example 50USD")
    return float(found["amount"])


def spent(config: EngineConfig) -> Usage:
    """Tokens and dollars of all replies of a run; `config` with its secrets (`runtime`).

    Logs that killed processes of this machine left are closed, and uploaded where the run is remote, so that they
    count.
    """
    ledger = Ledger(ledger_url(config), config.storage_options)
    ledger.open()
    ledger.close()
    return cache.spent(ledger_url(config), config.storage_options)


def keep_plan(config: EngineConfig, plan: Plan) -> None:
    """Keeps a plan with its run, in place of an earlier one, to be compared with what it will have cost."""
    live = config.runtime()
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    bought = cache.spent(ledger_url(live), live.storage_options)
    kept = KeptPlan(made=made, spent_usd=bought.cost_usd or 0.0, plan=plan)
    Run.open(live.run, live.storage_options).store.write_durable(PLAN_FILE, kept.model_dump_json(indent=2).encode())


def kept_plan(config: EngineConfig) -> Plan | None:
    """The plan that was made last, if any."""
    kept = _kept(config.runtime())
    return kept.plan if kept else None


def _kept(live: EngineConfig) -> KeptPlan | None:
    store = Run.open(live.run, live.storage_options).store
    return KeptPlan.model_validate_json(store.read(PLAN_FILE)) if store.exists(PLAN_FILE) else None


def cost_rows(config: EngineConfig) -> list[CostRow]:
    """The money of a run: what its ledger says it cost, and the last plan, with what had been spent before it.

    The ledger counts every reply once, also one that several captions share.
    """
    live = config.runtime()
    rows = [
        CostRow(
            name=f"{teacher} · {model}",
            requests=part.replies,
            prompt_tokens=part.usage.prompt_tokens,
            completion_tokens=part.usage.completion_tokens,
            actual_usd=part.usage.cost_usd,
        )
        for (teacher, model), part in cache.by_model(ledger_url(live), live.storage_options).items()
    ]
    kept = _kept(live)
    if kept is not None:
        batch = kept.plan.teacher == "openai_batch"
        planned = kept.plan.batch_usd if batch else kept.plan.online_usd
        if planned is not None:
            named = f"planned {kept.made[:10]} ({planned.low:.2f} to {planned.high:.2f})"
            rows.append(CostRow(name=named, planned_usd=kept.spent_usd + planned.likely))
    return rows
