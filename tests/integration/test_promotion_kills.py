"""A promotion, rollback or new log that is killed before or after any of its writes: the next reader sees the old
champion or the new one, and the same command again ends as if nothing had happened."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from lookalike.storage.local import LocalStore
from tests.integration.test_champions import World, _entries, _last, built  # noqa: F401, a fixture

WRITES: list[tuple[type, str]] = [
    (LocalStore, "create"),
    (LocalStore, "write"),
    (MlflowClient, "create_registered_model"),
    (MlflowClient, "create_model_version"),
    (MlflowClient, "set_registered_model_tag"),
    (MlflowClient, "set_registered_model_alias"),
    (MlflowClient, "set_model_version_tag"),
    (MlflowClient, "delete_model_version_tag"),
]


class Killed(BaseException):
    """As by a signal: no handler of errors catches it."""


@contextmanager
def killed_at(number: int, *, after: bool, also: Sequence[tuple[type, str]] = ()) -> Iterator[list[str]]:
    """Raise Killed before or after the write ``number`` (0, 1, …); yields the names of the writes so far."""
    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in [*WRITES, *also]:
            patch.setattr(owner, name, _counted(getattr(owner, name), name, done, number, after))
        yield done


def _counted(original: Callable[..., Any], name: str, done: list[str], number: int, after: bool) -> Callable[..., Any]:
    def write(*arguments: Any, **named: Any) -> Any:
        done.append(name)
        last = len(done) == number + 1
        if last and not after:
            raise Killed
        result = original(*arguments, **named)
        if last:
            raise Killed
        return result

    return write


def _promote(world: World) -> dict[str, Any]:
    return world.promote("better", out=world.root / "out")


def _rollback(world: World) -> dict[str, Any]:
    return world.rollback(out=world.root / "out")


def _rollback_to_a_moved_bundle(world: World) -> dict[str, Any]:
    """It registers a version, too."""
    moved = world.root / "first-moved"
    if not moved.exists():
        (world.root / "first" / "bundle").rename(moved)
    return world.rollback(out=world.root / "out", to=1, bundle=str(moved))


def _begin_anew(world: World) -> dict[str, Any]:
    return world.promote("better", out=world.root / "out", begin_anew="the log was lost")


@pytest.fixture
def fresh(built: World, tmp_path: Path) -> Callable[[], World]:  # noqa: F811
    def make() -> World:
        if built.root.exists():
            shutil.rmtree(built.root)
        shutil.copytree(built.root.parent / "copy", built.root)
        shutil.copyfile(built.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
        return World(built.root, f"sqlite:///{tmp_path}/mlflow.db", built.attempts)

    return make


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("act", [_promote, _rollback, _rollback_to_a_moved_bundle, _begin_anew])
def test_killed_at_every_write(act: Callable[[World], dict[str, Any]], after: bool, fresh: Callable[[], World]) -> None:
    world = fresh()
    expected = act(world)
    champion, count, versions = world.champion(), len(_entries(world)), _versions(world)
    for number in range(100):
        world = fresh()
        with killed_at(number, after=after) as writes, suppress(Killed):
            act(world)
        if len(writes) <= number:
            break
        seen = world.champion()  # a reader in between
        assert seen in ("good", champion)
        assert (seen == champion) == (_last(world).version == expected["version"])
        assert act(world) == expected, writes
        assert (world.champion(), len(_entries(world)), _versions(world)) == (champion, count, versions), writes
    assert number >= 6, "there were fewer writes than there have to be"
    shutil.rmtree(world.root)


def _versions(world: World) -> dict[str, dict[str, str]]:
    return {str(item.version): dict(item.tags) for item in world.client.search_model_versions("name='mini'")}
