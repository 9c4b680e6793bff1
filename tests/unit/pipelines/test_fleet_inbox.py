"""The folder of requests as a fleet sees it."""

import json
import os
from pathlib import Path

from lookalike.errors import InputError
from lookalike.storage import open_store
from pipelines.fleet import inbox
from pipelines.fleet.inbox import Inbox
from pipelines.fleet.records import record_done, record_failure
from pipelines.fleet.requests import Refused


def _write(folder: Path, name: str, text: str = "customer: acme\nsubject: mug\n", when: int = 1) -> Path:
    file = folder / name
    file.write_text(text)
    os.utime(file, (when, when))
    return file


def _waiting(box: Inbox) -> list[str]:
    return sorted(request.ticket.name for request in box.waiting)


def test_what_is_done_or_failed_is_not_read_again_until_its_file_changes(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.json", "c.yml", ".hidden.yaml", "notes.txt"):
        _write(tmp_path, name, '{"customer": "acme", "subject": "mug", "priority": 7}')
    (tmp_path / "below").mkdir()
    _write(tmp_path / "below", "d.yaml")
    folder = open_store(str(tmp_path))
    box = Inbox(folder, 0.001)
    assert box.look(now=True) == []
    assert _waiting(box) == ["a", "b", "c"]
    requests = {request.ticket.name: request for request in box.waiting}
    assert requests["a"].ticket.priority == 7
    assert requests["a"].settings == {"customer": "acme", "subject": "mug"}
    for request in requests.values():
        box.take(request)
    record_done(folder, "a", requests["a"].tag, {"version": 1})
    record_failure(folder, "b", requests["b"].sha256, InputError("no photos", fix="add some"))
    for again in (box, Inbox(folder, 0.001)):
        again.look(now=True)
        assert _waiting(again) == ([] if again is box else ["c"])
    assert again.earlier == 1
    _write(tmp_path, "a.yaml", "customer: acme\nsubject: cup\n", when=2)
    _write(tmp_path, "b.json", '{"customer": "bolt", "subject": "cup"}', when=2)
    box.look(now=True)
    assert _waiting(box) == ["a", "b"]
    (tmp_path / "a.yaml").unlink()  # taken back
    box.look(now=True)
    assert _waiting(box) == ["b"]


def test_files_that_are_no_requests_are_refused_once(tmp_path: Path) -> None:
    files = {"empty": "", "list": "[1]", "nobody": "subject: mug", "store": "{customer: a, subject: b, store: /etc}"}
    files |= {"first": "{customer: a, subject: b, priority: high}", "twice": "{customer: a, subject: b, subject: c}"}
    for name, text in files.items():
        _write(tmp_path, f"{name}.yaml", text)
    box = Inbox(open_store(str(tmp_path)), 0.001)
    refused = box.look(now=True)
    assert {each.name for each in refused if isinstance(each, Refused)} == files.keys()
    assert box.look(now=True) == []
    assert not box.waiting


def test_a_flood_is_read_in_parts_newest_first_and_a_slow_look_is_rarer(tmp_path: Path) -> None:
    for number in range(inbox._MOST_READ + 50):
        _write(tmp_path, f"a{number:05d}.json", json.dumps({"customer": "acme", "subject": f"s{number}"}))
    _write(tmp_path, "z.yaml", "customer: bolt\nsubject: mug\n", when=9)
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0  # a look takes a second
        return now[0]

    box = Inbox(open_store(str(tmp_path)), 5.0, clock)
    box.look()
    assert len(box.waiting) == inbox._MOST_READ
    assert box.unread == 51
    assert "z" in _waiting(box)
    looks = 0
    while box.unread:
        box.look()
        looks += 1
    assert 15 <= looks <= 25  # every call is a second, and a look of a second comes every 20
    assert len(box.waiting) == inbox._MOST_READ + 51
