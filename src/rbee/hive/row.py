"""The row of one worker: written in order, each time with what is true then, until it is forgotten."""

from collections.abc import Callable

import anyio
import structlog

from rbee.core.launch import StoredWorker
from rbee.hive.ports import Store

log = structlog.get_logger(__name__)


class Row:
    """*content* gives the row as it is to be now; *on_left* hears of one that could not be removed."""

    def __init__(
        self, worker_id: str, store: Store, content: Callable[[], StoredWorker], on_left: Callable[[str], None]
    ) -> None:
        self._worker_id = worker_id
        self._store = store
        self._content = content
        self._on_left = on_left
        self._lock = anyio.Lock()
        self._forgotten = False
        self._saved: StoredWorker | None = None

    async def save(self) -> None:
        """A store that fails is logged: the worker serves all the same."""
        try:
            with anyio.CancelScope(shield=True):
                await self.must_save()
        except OSError as error:
            log.error("store_failed", worker_id=self._worker_id, reason=str(error))  # noqa: TRY400

    async def must_save(self) -> None:
        """Raises OSError where the store fails."""
        # One after the other: an older row must never replace a newer one, and none come back.
        async with self._lock:
            content = self._content()
            # A change is written when it is taken, and once more by who promises it: the second has nothing to do.
            if not self._forgotten and content != self._saved:
                await self._store.save(content)
                self._saved = content

    async def forget(self) -> None:
        async with self._lock:
            self._forgotten = True
            try:
                await self._store.forget(self._worker_id)
            except OSError as error:
                log.error("store_failed", worker_id=self._worker_id, reason=str(error))  # noqa: TRY400
                self._on_left(self._worker_id)
