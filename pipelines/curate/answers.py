"""The answers of a model about the images of a raw shard, by content hash, under any labels and filters.

They are one table, and while a run adds to them also numbered parts, so that a killed run does not start a large shard
again from its first image. The last part is followed by the table with all answers, and then the parts are removed.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from lookalike.storage import Store
from pipelines.curate.tables import read_table, write_table
from pipelines.curate.workspace import Workspace


class Answers:
    """The answers of one model about the raw shard with id ``shard``, which are values of the Arrow type ``kind``.

    ``model`` is its identity: equal identities give equal answers.
    """

    def __init__(self, store: Store, workspace: Workspace, model: str, shard: str, kind: pa.DataType) -> None:
        self._store, self._workspace, self._model, self._shard = store, workspace, model, shard
        self._schema = pa.schema([("sha256", pa.string()), ("value", kind)])
        self._table = workspace.answers(model, shard)
        keys = [info.key for info in store.list(workspace.answers_prefix(model, shard))]
        self._parts = [key for key in keys if key != self._table]
        self.values: dict[str, Any] = {}
        """The answers that are known, by content hash."""
        for key in keys:
            known = read_table(store, key)
            self.values.update(zip(known["sha256"].to_pylist(), known["value"].to_pylist(), strict=True))
        self._complete = not self._parts and self._table in keys

    def add(self, new: Mapping[str, Any]) -> None:
        """Add answers, and write them as a part."""
        number = 1 + max((self._workspace.part_of_answers(key) for key in self._parts), default=-1)
        key = self._workspace.answers_part(self._model, self._shard, number)
        self._write(key, new)
        self.values.update(new)
        self._parts.append(key)
        self._complete = False

    def finish(self, new: Mapping[str, Any]) -> None:
        """Add the last answers, if any, write the table of all unless it exists, and remove the parts."""
        self.values.update(new)
        if new or not self._complete:
            self._write(self._table, dict(sorted(self.values.items())))
        for key in self._parts:  # of a killed run too
            self._store.delete(key)
        self._parts, self._complete = [], True

    def _write(self, key: str, answers: Mapping[str, Any]) -> None:
        columns = {"sha256": list(answers), "value": list(answers.values())}
        write_table(self._store, key, pa.table(columns, self._schema))
