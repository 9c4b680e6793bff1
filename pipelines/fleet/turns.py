"""Whose turn it is: priority, then the customer that has got least, then age."""

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush


@dataclass(frozen=True)
class Ticket:
    """What decides the order of a request that waits."""

    name: str
    customer: str
    subject: str
    priority: int = 0
    """Requests of a higher one come first, whoever they are of."""
    since: float = 0.0
    """When its file was written, s since 1970."""


def in_turn(
    waiting: Iterable[Ticket], in_work: Collection[Ticket], done: Mapping[str, int], quota: int | None = None
) -> Iterator[Ticket]:
    """Yield the tickets that may begin beside those ``in_work``, in the order in which they should.

    The highest priority comes first; then the customer with the fewest requests in work, those yielded before among
    them; then the one with the fewest requests ``done``; then the oldest. A customer has at most ``quota`` in work, and
    a subject one.
    """
    numbers = Counter(ticket.customer for ticket in in_work)
    subjects = {(ticket.customer, ticket.subject) for ticket in in_work}
    queues: dict[str, deque[Ticket]] = defaultdict(deque)
    for ticket in sorted(waiting, key=lambda each: (-each.priority, each.since, each.name)):
        queues[ticket.customer].append(ticket)

    def turn(customer: str) -> tuple[int, int, int, float, str, str]:
        first = queues[customer][0]
        return (-first.priority, numbers[customer], done.get(customer, 0), first.since, first.name, customer)

    turns = [turn(customer) for customer in queues]
    heapify(turns)
    while turns:
        customer = heappop(turns)[-1]
        if quota is not None and numbers[customer] >= quota:
            continue
        ticket = queues[customer].popleft()
        if (customer, ticket.subject) not in subjects:
            subjects.add((customer, ticket.subject))
            numbers[customer] += 1
            yield ticket
        if queues[customer]:
            heappush(turns, turn(customer))
