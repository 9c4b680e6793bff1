"""Queries of MLflow's own database for an erasure: what its API does not show, and what is left in any table."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

_SQLITE = "sqlite:///"
_BY_RUN = ("metrics", "latest_metrics")
"""Tables whose only text is the name of a metric: they are searched by run, since they may have 10^9 rows."""
_OF_A_RUN = ("run_uuid", "run_id", "source_run_id", "destination_id", "source_id")
_AT_ONCE = 200  # values in one query
_MOST_SHOWN = 20


def deleted_logged_models(uri: str, experiments: list[str], runs: set[str] | None) -> set[str]:
    """Ids of logged models that were deleted in MLflow, which its search leaves out; of ``runs`` only, if given."""
    with _connected(uri) as (connection, tables):
        table = tables.get("logged_models")
        if table is None:
            return set()
        import sqlalchemy as sa

        wanted = table.c.experiment_id.in_([int(experiment) for experiment in experiments])
        rows = connection.execute(sa.select(table.c.model_id, table.c.source_run_id).where(wanted))
        return {str(model) for model, run in rows if runs is None or run in runs}


def search(uri: str, texts: list[str], pattern: re.Pattern[str], runs: list[str]) -> list[str]:
    """Search every table for rows that hold one of ``texts`` and match ``pattern``, and for rows of ``runs``.

    Returns a description of each table and column with such rows.
    """
    import sqlalchemy as sa

    found = []
    with _connected(uri) as (connection, tables):
        for name, table in tables.items():
            of_runs = [column for column in table.columns if column.name in _OF_A_RUN]
            for some in _parts(runs):
                for column in of_runs:
                    number = connection.scalar(sa.select(sa.func.count()).where(column.in_(some)).select_from(table))
                    if number:
                        found.append(f"{number} rows of runs in MLflow's table {name}, column {column.name}")
            if name in _BY_RUN:
                continue
            columns = [column for column in table.columns if isinstance(column.type, sa.String)]
            for column in columns:
                for part in _parts(texts):
                    holds = sa.or_(*(column.contains(text, autoescape=True) for text in part))
                    rows = connection.execution_options(stream_results=True).execute(sa.select(column).where(holds))
                    if any(pattern.search(str(value)) for (value,) in rows):
                        found.append(f"rows in MLflow's table {name}, column {column.name}")
                        break
    return found[:_MOST_SHOWN]


def compact(uri: str) -> None:
    """Overwrite the pages of deleted rows, which sqlite keeps in its file. Other databases do so by themselves."""
    if not uri.startswith(_SQLITE):
        return
    import sqlalchemy as sa

    engine = sa.create_engine(uri, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("VACUUM"))
            connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))
    finally:
        engine.dispose()


def _parts(values: list[str]) -> Iterator[list[str]]:
    return (values[first : first + _AT_ONCE] for first in range(0, len(values), _AT_ONCE))


@contextmanager
def _connected(uri: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A connection, and the tables by name."""
    import sqlalchemy as sa

    engine = sa.create_engine(uri)
    try:
        described = sa.MetaData()
        described.reflect(engine)
        with engine.connect() as connection:
            yield connection, dict(described.tables)
    finally:
        engine.dispose()
