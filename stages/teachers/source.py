"""Where a worker's teacher comes from: configuration in, a back end behind its ledger out."""

from __future__ import annotations

from typing import Any, Literal

from stages.base import Funds
from stages.teachers.budget import Purse
from stages.teachers.config import TeacherConfig
from stages.teachers.desk import Desk, DeskTeacher
from stages.teachers.jobs import JobFolder
from stages.teachers.ledger import Ledger
from stages.teachers.ledgered import LedgeredTeacher
from stages.teachers.measured import MeasuredTeacher
from stages.teachers.pricing import price_of
from stages.teachers.protocol import Teacher


class TeacherSource:
    """Makes the teacher of a configuration. Picklable: clients and files are opened in the worker.

    All that take their teacher from one source share a back end and a ledger in each process: what is asked by two of
    them at a time is asked once. `ledger` is the run's ledger folder or URL; only billed teachers use it.
    `forgive_before` (Unix seconds) lets attempts without an answer be made again.
    """

    def __init__(
        self,
        config: TeacherConfig,
        ledger: str | None,
        storage_options: dict[str, Any] | None = None,
        forgive_before: float = 0.0,
    ) -> None:
        self.config = config
        self._ledger_url = ledger
        self._storage_options = storage_options
        self._forgive_before = forgive_before
        self._funds: Funds | None = None
        self._workers = 1
        self._desk = Desk()

    def fund(self, funds: Funds) -> None:
        """Bounds what teachers made from here may spend. Raises `ValueError` for a model without a price."""
        if self.config.backend not in ("openai", "openai_batch"):
            return  # nothing is paid by the token
        price = price_of(self.config.identity, self.config.prices)
        if price.cost(0, 0) is None:
            raise ValueError(
                f"a budget needs the price of {self.config.identity}, which no table has: name a table in "
                "teacher.prices (0 where nothing is paid by the token)"
            )
        self._funds = funds

    def share(self, workers: int) -> None:
        """Says among how many workers the minute limits of the account are divided, before anything is made."""
        self._workers = workers

    @property
    def name(self) -> str:
        """The back end, as rows name it."""
        return self.config.backend

    @property
    def model(self) -> str:
        """The model, as rows name it."""
        return self.config.identity

    @property
    def sees(self) -> Literal["encoded", "pixels", "subject"]:
        """What a request has to carry for this teacher."""
        match self.config.backend:
            case "measured":
                return "subject"
            case "vllm":
                return "pixels"
            case _:
                return "encoded"

    def make(self) -> Teacher:
        """The teacher, behind its ledger if it is billed. Raises `ValueError` for a configuration that cannot work.

        It is there when it is started; the ledger is closed when the last that was made here is stopped.
        """
        if self.config.backend == "measured":
            return MeasuredTeacher()
        if self._ledger_url is None:
            raise ValueError(f"teacher backend {self.config.backend} needs a ledger: replies cost money")
        return DeskTeacher(self._desk, self._ledgered, self.name, self.model, self.sees)

    def _ledgered(self) -> Teacher:
        assert self._ledger_url is not None
        teacher = self._billed(self._ledger_url)
        ledger = Ledger(self._ledger_url, self._storage_options, forgive_before=self._forgive_before)
        ledger.open()
        return LedgeredTeacher(teacher, ledger)

    def _billed(self, ledger: str) -> Teacher:
        """Imported here: the clients take seconds, which commands that ask nobody need not pay."""
        purse = None if self._funds is None else Purse(self._funds)
        config = self.config.model_copy(update={"limits": self.config.limits.shared_by(self._workers)})
        if self.config.backend == "openai":
            from stages.teachers.online import OnlineTeacher

            return OnlineTeacher(config, purse)
        if self.config.backend == "vllm":
            from stages.teachers.engine import EngineTeacher

            return EngineTeacher(config)
        from stages.teachers.batch import BatchTeacher

        jobs = JobFolder(f"{ledger.rstrip('/')}/jobs", self._storage_options)
        return BatchTeacher(config, jobs, self._forgive_before, purse)
