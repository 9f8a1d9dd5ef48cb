"""A SQLite file that threads and processes share: whole transactions, one line of what fails."""

import sqlite3
import threading
from contextlib import contextmanager
from pathlib import Path

from promedical_utils.core.workspace import KitError, shown


class Database:
    """One file with the tables of ``schema``, a path; ``advice`` ends every KitError."""

    def __init__(self, path: Path, schema: Path, advice: str):
        self.path, self._advice, self._lock = Path(path), advice, threading.RLock()
        with self._explained("cannot open"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # asked from the threads of a pool, and by JupyterLab from one that is not the cell's
            self._db = sqlite3.connect(
                self.path, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._db.row_factory = sqlite3.Row
            self._db.executescript(schema.read_text(encoding="utf-8"))

    def _read(self, query: str, *values) -> list[sqlite3.Row]:
        with self._lock, self._explained("cannot read"):
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _writing(self, failure: str):
        """One transaction, taken at its start so that what it reads is what it writes on."""
        with self._lock, self._explained(failure), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def _explained(self, failure: str):
        """SQLite's errors (full disk, read-only, locked, no database) as one line."""
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            line = f"{failure}: {shown(self.path)}: {error}. {self._advice}"
            raise KitError(line) from None
