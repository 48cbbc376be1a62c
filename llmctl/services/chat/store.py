"""Store of conversations: one SQLite file in llmctl's home folder, written after every turn.

Each write is one transaction in WAL mode: after a crash the file holds the last complete turn, and
readers do not wait for writers.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llmctl.config import store_home
from llmctl.errors import ConfigError, LlmctlError
from llmctl.services.chat.conversation import (
    Conversation,
    conversation_from_dict,
    conversation_to_dict,
)

SCHEMA_VERSION: Final = 1
_BUSY_TIMEOUT_S: Final = 10.0
_TABLES = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    updated REAL NOT NULL,
    title TEXT NOT NULL,
    model TEXT NOT NULL,
    turns INTEGER NOT NULL,
    head TEXT NOT NULL
);
CREATE TABLE turns (
    conversation TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (conversation, position)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class ConversationSummary:
    """One entry of the list of conversations."""

    id: str
    updated: float
    """Unix time in seconds."""
    title: str
    model: str
    turns: int


class ConversationConflictError(LlmctlError):
    """Another process has changed the conversation since it was read."""


def conversations_file() -> Path:
    """Return the path of the store. The file may not exist yet."""
    return store_home() / "conversations.db"


class ConversationStore:
    """Saves and reads conversations. Every method raises `LlmctlError` if the file is unusable."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = conversations_file() if file is None else file

    def save(self, conversation: Conversation, now: float) -> Conversation:
        """Write a conversation; return it with its new version.

        Args:
            now: Unix time in seconds.

        Raises:
            ConversationConflictError: another process has changed it since it was read.
        """
        head = conversation_to_dict(conversation)
        bodies = [_dump(turn) for turn in head.pop("turns")]
        with self._open() as database, database:
            row = (now, conversation.title, conversation.model, len(bodies), _dump(head))
            if conversation.version == 0:
                database.execute(
                    "INSERT INTO conversations (id, version, updated, title, model, turns, head) "
                    "VALUES (?, 1, ?, ?, ?, ?, ?)",
                    (conversation.id, *row),
                )
            else:
                changed = database.execute(
                    "UPDATE conversations SET version = version + 1, updated = ?, title = ?, "
                    "model = ?, turns = ?, head = ? WHERE id = ? AND version = ?",
                    (*row, conversation.id, conversation.version),
                )
                if changed.rowcount == 0:
                    raise ConversationConflictError(
                        f"conversation {conversation.id} was changed elsewhere"
                    )
            database.execute("DELETE FROM turns WHERE conversation = ?", (conversation.id,))
            database.executemany(
                "INSERT INTO turns (conversation, position, body) VALUES (?, ?, ?)",
                [(conversation.id, position, body) for position, body in enumerate(bodies)],
            )
        return replace(conversation, version=conversation.version + 1)

    def read(self, id: str | None = None) -> Conversation:
        """Return a conversation by its id or a prefix of it; `None` is the most recent one.

        Raises:
            ConfigError: there is no such conversation, or the prefix matches several.
        """
        with self._open() as database:
            rows = database.execute(
                "SELECT id, version, head FROM conversations "
                "WHERE ?1 IS NULL OR substr(id, 1, length(?1)) = ?1 ORDER BY updated DESC LIMIT 2",
                (id,),
            ).fetchall()
            if not rows:
                raise ConfigError(
                    "there is no conversation yet"
                    if id is None
                    else f"there is no conversation {id!r}",
                    hint="" if id is None else "`llmctl chat --list` shows them",
                )
            if len(rows) > 1 and id is not None:
                raise ConfigError(
                    f"several conversation ids start with {id!r}", hint="give a longer prefix"
                )
            full_id, version, head = rows[0]
            bodies = [
                body
                for (body,) in database.execute(
                    "SELECT body FROM turns WHERE conversation = ? ORDER BY position", (full_id,)
                )
            ]
        try:
            value = json.loads(head) | {"turns": [json.loads(body) for body in bodies]}
            conversation = conversation_from_dict(value)
        except (ValueError, LlmctlError) as error:
            raise LlmctlError(
                f"conversation {full_id} in {self.file} is damaged: {error}"
            ) from error
        return replace(conversation, version=version)

    def list(self, limit: int | None = None) -> list[ConversationSummary]:
        """Return conversations, the most recent first."""
        if not self.file.exists():
            return []
        with self._open() as database:
            rows = database.execute(
                "SELECT id, updated, title, model, turns FROM conversations "
                "ORDER BY updated DESC LIMIT ?",
                (-1 if limit is None else limit,),
            ).fetchall()
        return [ConversationSummary(*row) for row in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Connect for one operation, so that no lock outlives it."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if not self.file.exists():
                # Only the owner may read conversations.
                os.close(os.open(self.file, os.O_CREAT | os.O_WRONLY, 0o600))
            with closing(sqlite3.connect(self.file, timeout=_BUSY_TIMEOUT_S)) as database:
                database.execute("PRAGMA foreign_keys = ON")
                self._create_tables(database)
                yield database
        except (sqlite3.Error, OSError) as error:
            raise LlmctlError(
                f"the conversations in {self.file} cannot be used: {error}",
                hint="free disk space or correct its permissions, or move the file away",
            ) from error

    def _create_tables(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == SCHEMA_VERSION:
            return
        if version > SCHEMA_VERSION:
            raise LlmctlError(
                f"{self.file} was written by a newer llmctl "
                f"(schema {version}; this one reads {SCHEMA_VERSION})",
                hint="pip install -U llmctl",
            )
        database.execute("PRAGMA journal_mode = WAL")
        with database:
            database.execute("BEGIN IMMEDIATE")
            # Another process may have created them in the meantime.
            if database.execute("PRAGMA user_version").fetchone() == (0,):
                for statement in _TABLES.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
