"""While a prefix has the marker of an erasure, nothing starts, resumes or commits below it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lookalike.errors import BusyError
from lookalike.storage import Store, open_store
from lookalike.storage.claim import claim, write_result
from lookalike.storage.erasing import MARKER, Watch, prefixes_of, refuse_if_erasing
from lookalike.storage.lease import Fence, hold


@pytest.fixture
def customers(tmp_path: Path) -> Store:
    """The folder of the customers."""
    return open_store(str(tmp_path / "customers"))


def _hold(store: Store) -> None:
    with hold(store.child("lease")):
        pass


STARTS: list[Callable[[Store], object]] = [
    lambda store: claim(store, {"a": 1}),
    lambda store: write_result(store, "result.json", {"a": 1}, "run"),
    _hold,
    refuse_if_erasing,
    lambda store: Watch(store).check(),
]


@pytest.mark.parametrize("marked", ["acme", "acme/mug"])
@pytest.mark.parametrize("start", STARTS)
def test_nothing_starts_below_the_marker(customers: Store, marked: str, start: Callable[[Store], object]) -> None:
    customers.write(f"{marked}/{MARKER}", b"{}")
    with pytest.raises(BusyError, match="being erased"):
        start(customers.child("acme/mug/photos-1/run"))
    with pytest.raises(BusyError, match="being erased"):
        start(customers.child("acme/mug/.erasing-too"))
    start(customers.child("acme2/mug"))
    start(customers.child("acme-mug"))


def test_other_subjects_and_the_erasure_itself_go_on(customers: Store) -> None:
    customers.write(f"acme/mug/{MARKER}", b"{}")
    _hold(customers.child("acme/mug2"))
    _hold(customers.child("acme/mug/.erasing"))


def test_holder_of_a_lease_is_stopped_at_its_next_commit(customers: Store) -> None:
    place = customers.child("acme/mug/run")
    with hold(place.child("lease")) as lease:
        lease.check()
        customers.write(f"acme/{MARKER}", b"{}")
        with pytest.raises(BusyError, match="being erased"):
            lease.check()
        assert lease.lost.is_set()


def test_holder_that_slept_through_the_erasure_does_not_commit(customers: Store) -> None:
    place = customers.child("acme/mug/run/lease")
    with hold(place) as lease:
        for info in list(place.list()):
            place.delete(info.key)
        with pytest.raises(BusyError, match="lease was removed"):
            Fence(place, lease.number).check()
    assert not list(place.list())


def test_prefixes_are_the_customers_and_the_subjects(customers: Store) -> None:
    uris = [store.uri for store in prefixes_of(customers.child("acme/mug/customers/evil/x"))]
    assert uris == [customers.child("acme").uri, customers.child("acme/mug").uri]
    assert prefixes_of(customers) == []
    assert [store.uri for store in prefixes_of(customers.child("acme"))] == [customers.child("acme").uri]
