"""Whose turn it is among many customers."""

from collections import Counter

from pipelines.fleet.turns import Ticket, in_turn


def _names(tickets: list[Ticket], in_work: list[Ticket] | None = None, **settings: object) -> list[str]:
    done = settings.pop("done", {})
    return [ticket.name for ticket in in_turn(tickets, in_work or [], done, **settings)]  # type: ignore[arg-type]


def test_a_customer_with_many_requests_does_not_delay_others() -> None:
    flood = [Ticket(f"a{n:04d}", "acme", f"s{n}", since=n) for n in range(1000)]
    late = [Ticket("b0", "bolt", "mug", since=2000), Ticket("c0", "carl", "mug", since=3000)]
    assert _names([*flood, *late])[:5] == ["a0000", "b0", "c0", "a0001", "a0002"]


def test_the_order_is_priority_then_least_in_work_then_least_done_then_age() -> None:
    work = [Ticket("w", "acme", "other")]
    tickets = [
        Ticket("a", "acme", "mug", since=0),
        Ticket("b", "bolt", "mug", since=3),
        Ticket("c", "carl", "mug", since=2),
        Ticket("d", "dent", "mug", since=1),
        Ticket("urgent", "acme", "cup", priority=1, since=9),
    ]
    assert _names(tickets, work, done={"dent": 5}) == ["urgent", "c", "b", "d", "a"]


def test_requests_of_one_subject_take_turns() -> None:
    tickets = [Ticket("a0", "acme", "mug", since=0), Ticket("a1", "acme", "mug", since=1), Ticket("a2", "acme", "cup")]
    assert _names(tickets) == ["a0", "a2"]
    assert _names(tickets, [Ticket("w", "acme", "mug")]) == ["a2"]
    assert _names(tickets, [Ticket("w", "bolt", "mug")]) == ["a0", "a2"]


def test_a_quota_bounds_what_a_customer_has_in_work() -> None:
    tickets = [Ticket(f"{who}{n}", who, f"s{n}", since=n) for who in "ab" for n in range(5)]
    assert _names(tickets, [Ticket("w", "a", "other")], quota=2) == ["b0", "a0", "b1"]


def test_shares_of_many_customers_are_even() -> None:
    tickets = [Ticket(f"{who:03d}-{n}", f"{who:03d}", f"s{n}", since=who) for who in range(100) for n in range(who + 1)]
    begun = list(in_turn(tickets, [], {}))
    assert len(begun) == len(tickets)
    first = Counter(ticket.customer for ticket in begun[:1000])
    many = [first[f"{who:03d}"] for who in range(20, 100)]
    assert max(many) - min(many) <= 1
