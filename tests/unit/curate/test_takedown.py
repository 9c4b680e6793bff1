import codecs
import re
import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.errors import InputError
from lookalike.storage import open_store
from pipelines.curate import removals
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import FiltersConfig, Photos
from pipelines.curate.filters.taken_down import TakenDown
from pipelines.curate.inputs import Inputs
from pipelines.curate.removals import check_matched, count_matches, entry_lines, summed, take_down
from pipelines.curate.rows import IMAGES_SCHEMA, subject_hash
from pipelines.curate.subject_rows import read_subjects
from pipelines.curate.takedown import TakeDownList, pin, pinned_hash, read_list, trimmed
from pipelines.curate.work import StageWork
from tests.drawn import world, write_raw
from tests.unit.curate.conftest import in_process
from tests.versions import hashed, publish

NFC, NFD = (unicodedata.normalize(form, "José's dog") for form in ("NFC", "NFD"))
CONTENT = "ab" * 32
ROWS = pa.table(
    {
        "sha256": [CONTENT, None, "cd" * 32, "ef" * 32],
        "key": ["a", "b: c", "d", "e"],
        "subject": ["cup", "cup", "hat", "mug"],
        "source": ["", "", "https://example.org/1#x", "camera"],
    }
)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (CONTENT.upper(), [True, False, False, False]),
        (f"sha256: {CONTENT}  # by letter of May 3rd", [True, False, False, False]),
        ("key:b: c", [False, True, False, False]),
        ("subject: cup", [True, True, False, False]),
        ("source:camera", [False, False, False, True]),
        ("# nothing\n\n", [False] * 4),
    ],
)
def test_an_entry_names_images(line: str, named: list[bool]) -> None:
    assert TakeDownList.parse(line, "list.txt").matches(ROWS)[0].tolist() == named


@pytest.mark.parametrize("line", ["cup", "subject:", "sha256:123", "url:x", CONTENT[:-1]])
def test_an_invalid_line_is_rejected(line: str) -> None:
    with pytest.raises(InputError, match=r"line 2 .* list\.txt"):
        TakeDownList.parse(f"key:a\n{line}", "list.txt")


def test_the_copy_is_read_after_the_list_changed(tmp_path: Path) -> None:
    file, dataset = tmp_path / "list.txt", open_store(str(tmp_path / "dataset"))
    file.write_text("key:a\n")
    pinned = pin(str(file), dataset)
    file.write_text("key:d\n")
    assert TakenDown(pinned).drop(Photos(ROWS)).tolist() == [True, False, False, False]
    assert not TakenDown().drop(Photos(ROWS)).any()
    other = pin(str(file), dataset)
    assert pinned_hash(other) != pinned_hash(pinned)
    assert len(read_list(other)) == 1
    with pytest.raises(InputError, match="no such object"):
        pin(str(tmp_path / "none.txt"), dataset)


def test_a_list_is_identified_by_its_bytes_and_not_its_uri(tmp_path: Path) -> None:
    def fingerprint(text: str, name: str) -> str:
        (tmp_path / f"{name}.txt").write_text(text)
        pinned = pin(str(tmp_path / f"{name}.txt"), open_store(str(tmp_path / name)))
        filters = FiltersConfig(taken_down=TakenDown(pinned))
        return Inputs.of(CurateConfig(raw="raw", dataset=name, filters=filters), []).fingerprint

    assert fingerprint("key:a", "one") == fingerprint("key:a", "two")
    assert fingerprint("key:a", "one") != fingerprint("key:b", "three")


def test_a_list_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(np.arange(256, dtype=np.uint8).tobytes())
    with pytest.raises(InputError, match=r"line 2 is not UTF-8: byte 0x80"):
        pin(str(tmp_path / "list.txt"), open_store(str(tmp_path / "dataset")))


def test_utf_16_without_a_byte_order_mark_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("key:a\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="UTF-16 without a byte-order mark"):
        pin(str(tmp_path / "list.txt"), open_store(str(tmp_path / "dataset")))


# Entries as people write and copy them, and the column and value that each names.
SPELLINGS: list[tuple[str, str, str]] = [
    ("key:IMG #1", "key", "IMG #1"),
    ("source:https://ex.org/gallery#photo-0", "source", "https://ex.org/gallery#photo-0"),
    ("subject:" + NFC, "subject", NFD),
    ("subject:" + NFD, "subject", NFC),
    ("source:https://ex.org/" + NFD, "source", "https://ex.org/" + NFC),
    ("  Subject : cup\t", "subject", "cup"),
    ("SHA256:" + CONTENT.upper(), "sha256", CONTENT),
    ("sha256: " + CONTENT + "\t# a letter of May 3rd", "sha256", CONTENT),
    (CONTENT + " # a letter", "sha256", CONTENT),
    ("\u200bkey:a\ufeff", "key", "a"),
    ("\u202akey:a\u202c", "key", "a"),
    ("key:a\u00a0", "key", "a"),
    ("key:a", "key", " a "),
    ("key:b: c", "key", "b: c"),
    ("key:folder/a", "key", "folder/a"),
    ("key:a\u2028b\x0cc", "key", "a\u2028b\x0cc"),
    ("key:#1", "key", "#1"),
    ("subject:'quoted'", "subject", "'quoted'"),
    ("source:a,b;c", "source", "a,b;c"),
    ("source:x%20y?z=1&w", "source", "x%20y?z=1&w"),
    ("subject:👩‍🚀", "subject", "👩‍🚀"),
]


def rows_with(kind: str, value: str | None) -> pa.Table:
    names = ("sha256", "key", "subject", "source")
    return pa.table({name: pa.array([value if name == kind else None, "other"], pa.string()) for name in names})


@pytest.mark.parametrize(("line", "kind", "value"), SPELLINGS)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_names_are_compared_exactly_in_normal_form(line: str, kind: str, value: str, ending: str) -> None:
    text = ending.join(["# a list", "", line, "  # the end", ""])
    named, counts = TakeDownList.parse(text, "list.txt").matches(rows_with(kind, value))
    assert (named.tolist(), counts.tolist()) == ([True, False], [1])


@pytest.mark.parametrize(
    ("line", "kind", "value"),
    [
        ("source:https://ex.org/gallery#photo-0", "source", "https://ex.org/gallery"),
        ("key:IMG", "key", "IMG #1"),
        ("key:img #1", "key", "IMG #1"),
        ("source:a%20b", "source", "a b"),
        ("key:a", "key", "folder/a"),
        ("key:a", "subject", "a"),
        ("subject:\uff43\uff55\uff50", "subject", "cup"),  # full width: another name in NFC, and the same in NFKC
        ("subject:c\u200bup", "subject", "cup"),
    ],
)
def test_an_entry_matches_no_similar_name(line: str, kind: str, value: str) -> None:
    assert TakeDownList.parse(line, "list.txt").matches(rows_with(kind, value))[1].tolist() == [0]


@pytest.mark.parametrize(
    "line",
    ['"key:a"', "a,b", "key", "https://ex.org/a.jpg", f"{CONTENT}  photo.jpg", "md5:123", ":a", "sha256:abc"],
)
def test_a_line_in_another_format_is_rejected_with_its_number(line: str) -> None:
    with pytest.raises(InputError, match=r"line 3 of the take-down list is not an entry"):
        TakeDownList.parse(f"# one\r\nkey:a\r\n{line}\r\n", "list.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_list_is_decoded_by_its_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    mark = codecs.BOM_UTF16_LE if encoding == "utf-16-le" else b""
    (tmp_path / "list.txt").write_bytes(mark + f"subject:{NFC}\n".encode(encoding))
    pinned = pin(str(tmp_path / "list.txt"), open_store(str(tmp_path / "dataset")))
    assert read_list(pinned).entries == (("subject", NFC),)


@pytest.mark.parametrize("name", ["list #1.txt", "li%20st.txt", "l?st.txt", "liste-é.txt"])
def test_a_list_may_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("key:a\n")
    place = f"file://{quote(str(tmp_path / name))}"
    assert len(read_list(pin(place, open_store(str(tmp_path / "dataset"))))) == 1


def test_entries_without_an_image_are_an_error_whose_fix_works() -> None:
    taken = TakeDownList.parse('key:IMG #1\nsubject:it\'s "it"\nkey:a', "list.txt")
    none, some = np.zeros(3, int), np.array([0, 0, 2])
    with pytest.raises(InputError, match="2 of 3 entries of the take-down list name no image") as caught:
        check_matched(taken, some, none, [])
    assert caught.value.value == ["key:IMG #1", 'subject:it\'s "it"']
    (flag,) = re.findall(r"--filters\S+ .*", caught.value.fix)
    words = shlex.split(flag)
    assert words[0] == "--filters.taken_down.allow_unmatched"
    check_matched(taken, some, none, yaml.safe_load(words[1]))
    check_matched(taken, some, np.array([1, 1, 0]), [])  # an earlier snapshot had them
    with pytest.raises(InputError, match="1 of 3"):
        check_matched(taken, some, none, ["key:IMG #1"])


def test_allowed_entries_may_be_spelled_as_in_the_list() -> None:
    taken = TakeDownList.parse(f"subject:{NFC}", "list.txt")
    check_matched(taken, np.zeros(1, int), np.zeros(1, int), [f"Subject: {NFD} "])


def test_matches_are_counted_by_group_of_raw_shards(
    planned: Callable[..., StageWork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_raw(tmp_path / "raw", world(3, 4), per_shard=4)
    (tmp_path / "list.txt").write_text("subject:thing01\nkey:thing00-0\nsource:drawn\nkey:nothing\n")
    pinned = pin(str(tmp_path / "list.txt"), open_store(str(tmp_path / "dataset")))
    work = planned(raw, filters=FiltersConfig(taken_down=TakenDown(pinned)))
    for _ in range(2):  # the second time from what the first has written
        counts, images = summed(in_process(count_matches, work, list(work.groups())), 4)
        assert (counts.tolist(), images) == ([4, 1, 12, 0], {0: 12})
        monkeypatch.setattr(removals, "read_part", None)
    rows = work.read_plan(0, "images")
    assert rows["drop_reason"].to_pylist() == ["taken_down"] * 12


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1, max_size=12).filter(lambda name: trimmed(name) and not re.search("[\r\n]", name)))
def test_any_name_can_be_removed_in_any_normal_form(name: str) -> None:
    for written in (name, unicodedata.normalize("NFD", name), unicodedata.normalize("NFC", name)):
        taken = TakeDownList.parse(f"key:{written}", "list.txt")
        assert taken.matches(rows_with("key", name))[0].tolist()[0]


def test_the_jobs_output_has_a_line_for_each_entry() -> None:
    lines = entry_lines({"matched": {"key:a": 3, "key:b": 0}, "entries": 2}, "file:///d")
    assert lines == ["taken down: 'key:b' names 0 images", "taken down: 'key:a' names 3 images"]
    assert len(entry_lines({"matched": {f"key:{i}": 1 for i in range(1000)}, "entries": 5000}, "file:///d")) == 21
    assert entry_lines(None, "file:///d") == []
    (_, advice) = entry_lines({"matched": {"key:a": 3}, "entries": 1, "held_by": {"v0001": 2}}, "file:///d")
    assert "v0001 holds images of the take-down list: remove these versions" in advice
    assert "python jobs/curate.py collect --dataset file:///d" in advice


@pytest.mark.usefixtures("no_ray")
def test_equal_files_of_removed_images_are_removed(planned: Callable[..., StageWork], tmp_path: Path) -> None:
    photos = world(3, 3)
    copies = [photos[0].under("copy", "thing01"), photos[4].under("other", "thing02")]
    raw = write_raw(tmp_path / "raw", [*photos, *copies], per_shard=4)
    (tmp_path / "list.txt").write_text("key:thing00-0\nsubject:thing01\n")
    dataset = open_store(str(tmp_path / "dataset"))
    filters = FiltersConfig(taken_down=TakenDown(pin(str(tmp_path / "list.txt"), dataset)))
    found = take_down(planned(raw, filters=filters), [])
    stage, record = found.stage, found.record
    assert record is not None
    assert (record["matched"], record["named"]) == ({"key:thing00-0": 1, "subject:thing01": 4}, 5)
    rows = read_subjects(stage, 0).rows
    dropped = stage.config.filters.taken_down.drop(Photos(rows))
    named = {row["key"] for row, drop in zip(rows.to_pylist(), dropped, strict=True) if drop}
    assert named == {"thing00-0", "copy", "thing01-0", "thing01-1", "thing01-2", "other"}
    assert stage.inputs.fingerprint == planned(raw, filters=filters).inputs.fingerprint


@pytest.mark.usefixtures("no_ray")
def test_the_manifest_shows_a_bounded_number_of_entries(planned: Callable[..., StageWork], tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", world(2, 2))
    entries = ["subject:thing00", *(f"key:absent-{i}" for i in range(1500))]
    (tmp_path / "list.txt").write_text("\n".join(entries))
    pinned = pin(str(tmp_path / "list.txt"), open_store(str(tmp_path / "dataset")))
    filters = FiltersConfig(taken_down=TakenDown(pinned, entries[1:]))
    found = take_down(planned(raw, filters=filters), [])
    record, matched = found.record, found.matched
    assert record is not None
    assert (len(record["matched"]), record["not_shown"], len(record["unmatched"])) == (1000, 501, 1000)
    assert list(matched) == entries
    strict = planned(raw, filters=FiltersConfig(taken_down=TakenDown(pinned)))
    with pytest.raises(InputError, match="1500 of 1501 entries"):
        take_down(strict, [])


@pytest.mark.parametrize(
    "name", ["my photo #1.jpg", unicodedata.normalize("NFD", "José.jpg"), "a?b=c&d.jpg", "50% off.jpg", "plain.jpg"]
)
def test_a_file_uri_matches_with_and_without_percent_encoding(name: str) -> None:
    encoded, plain = f"file:///photos/{quote(name)}", f"file:///photos/{name}"
    rows = pa.table({"sha256": ["ab", "cd"], "key": ["a", "b"], "subject": ["c", "c"], "source": [encoded, plain]})
    spellings = [encoded, plain, unicodedata.normalize("NFC", plain), f"file://localhost/photos/{quote(name)}"]
    for spelling in spellings:
        assert TakeDownList.parse(f"source:{spelling}", "list.txt").matches(rows)[0].all(), spelling
    both = TakeDownList.parse("\n".join(f"source:{spelling}" for spelling in spellings), "list.txt")
    named, counts = both.matches(rows)
    assert named.all()
    check_matched(both, counts, np.zeros(len(both)), [])  # each spelling has matched
    assert not TakeDownList.parse(f"source:{encoded}x\nsource:file://host/{name}", "list.txt").matches(rows)[0].any()


def test_size_of_a_list_is_bounded_by_its_setting(tmp_path: Path) -> None:
    file, dataset = tmp_path / "list.txt", open_store(str(tmp_path / "dataset"))
    file.write_text("key:a\n" + "# a comment\n" * 100_000)  # 1.1 MiB
    with pytest.raises(InputError, match=r"more than the 1 MiB that filters\.taken_down\.max_list_mib allows"):
        pin(str(file), dataset, max_mib=1)
    pinned = pin(str(file), dataset)
    assert len(read_list(pinned)) == 1

    def fingerprint(max_list_mib: int) -> str:
        filters = FiltersConfig(taken_down=TakenDown(pinned, max_list_mib=max_list_mib))
        return Inputs.of(CurateConfig(raw="raw", dataset="d", filters=filters), []).fingerprint

    assert fingerprint(1) == fingerprint(1024), "the bound decides about no image"


STORED_SCHEMA = (
    IMAGES_SCHEMA
    if "stored_shard" in IMAGES_SCHEMA.names
    else IMAGES_SCHEMA.append(pa.field("stored_shard", pa.string()))
)


def image(
    key: str, content: str, pack: str | None, subject: str = "thing", reason: str | None = None
) -> dict[str, Any]:
    row = {"key": key, "sha256": content, "subject": subject, "subject_hash": subject_hash(subject), "shard": "s.tar"}
    return row | {"source": "drawn", "offset": 0, "length": 1, "stored_shard": pack, "drop_reason": reason}


def listed(planned: Callable[..., StageWork], tmp_path: Path, raw: Path, *lines: str) -> StageWork:
    (tmp_path / "list.txt").write_text("\n".join(lines))
    pinned = pin(str(tmp_path / "list.txt"), open_store(str(tmp_path / "dataset")))
    return planned(raw, filters=FiltersConfig(taken_down=TakenDown(pinned)))


@pytest.mark.usefixtures("no_ray")
def test_packs_with_removed_images_are_found_in_all_versions(
    planned: Callable[..., StageWork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the image is dropped there, was in a raw shard that is gone, or is stored under another name."""
    monkeypatch.setattr("pipelines.curate.snapshot_tables._ROWS_OF_A_UNIT", 2)
    photos = world(2, 3)
    gone, renamed = hashed("gone"), hashed(photos[4].jpeg)
    raw = write_raw(tmp_path / "raw", photos)
    versions = {
        1: [image("old-name", renamed, "shards/a.tar"), image("b", hashed("b"), "shards/a.tar")],
        2: [image("gone", gone, "shards/b.tar", reason="blurry"), image("b", hashed("b"), "shards/c.tar")],
        3: [image("copy", gone, "shards/d.tar", "other"), image("gone", gone, None, reason="duplicate")],
        4: [image("b", hashed("b"), "shards/c.tar"), image("e", hashed("e"), "shards/e.tar")],
    }
    stage = listed(planned, tmp_path, raw, "key:gone", "key:old-name")
    for number, rows in versions.items():
        publish(stage.dataset, number, rows, [], schema=STORED_SCHEMA, per_part=1)
    found = take_down(stage, list(versions))
    assert found.packs == {"shards/a.tar", "shards/b.tar", "shards/d.tar"}
    assert found.record is not None
    assert found.record["held_by"] == {"v0001": 1, "v0002": 1, "v0003": 1}
    assert "v0001, v0002, v0003 hold images" in found.record["fix"]
    assert "curate.py collect" in found.record["fix"]
    rows = read_subjects(found.stage, 0).rows
    dropped = found.stage.config.filters.taken_down.drop(Photos(rows))
    assert rows.filter(pa.array(dropped))["key"].to_pylist() == [photos[4].key]  # its bytes are those of old-name
    next_list = read_list(str(found.stage.config.filters.taken_down.list))
    assert next_list.entries == (
        ("key", "gone"),
        ("key", "old-name"),
        *(("sha256", c) for c in sorted([gone, renamed])),
    )

    # The next version names none of these packs. Until the list or the raw images change, nothing is searched again.
    publish(stage.dataset, 5, versions[4], [], schema=STORED_SCHEMA, taken_down=found.record)
    with monkeypatch.context() as patch:
        patch.setattr(removals, "find_holders", None)
        again = take_down(stage, [2, 3, 4, 5])  # version 1 was removed
    assert again.packs == frozenset()
    assert again.record == found.record | {"held_by": {"v0002": 1, "v0003": 1}} | {"fix": again.record["fix"]}  # type: ignore[index]
    assert again.stage.config == found.stage.config
    changed = take_down(listed(planned, tmp_path, raw, "key:gone", "key:e", "key:old-name"), [2, 3, 4, 5])
    assert changed.packs == {"shards/b.tar", "shards/d.tar", "shards/e.tar"}
    longer = read_list(str(changed.stage.config.filters.taken_down.list))
    assert {f"sha256:{gone}", f"sha256:{renamed}"} < set(longer.names), "a photo of the removed version 1 came back"
    with pytest.raises(InputError, match=r"1 of 2 entries .*key:new"):
        take_down(listed(planned, tmp_path, raw, "key:old-name", "key:new"), [2, 3, 4, 5])
    caplog.clear()
    shorter = take_down(listed(planned, tmp_path, raw, "key:old-name"), [2, 3, 4, 5])
    assert read_list(str(shorter.stage.config.filters.taken_down.list)).names == ["key:old-name"]
    assert "lacks entries of the one before" in caplog.text


@pytest.mark.usefixtures("no_ray")
def test_no_pack_of_the_next_version_has_a_removed_photo(
    planned: Callable[..., StageWork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.curate.snapshot_tables._ROWS_OF_A_UNIT", 4)
    raw = write_raw(tmp_path / "raw", world(2, 2))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        contents = [hashed(f"{seed} {i}") for i in range(12)]
        versions = {
            number: [
                image(
                    f"key-{rng.integers(20)}",
                    str(rng.choice(contents)),
                    f"shards/{rng.integers(6)}.tar" if rng.random() < 0.7 else None,
                    reason="blurry" if rng.random() < 0.3 else None,
                )
                for _ in range(10)
            ]
            for number in (1, 2, 3)
        }
        all_rows = [row for rows in versions.values() for row in rows]
        keys = {all_rows[0]["key"], all_rows[15]["key"]}
        stage = listed(planned, tmp_path, raw, *(f"key:{key}" for key in sorted(keys)))
        for number, rows in versions.items():
            publish(stage.dataset, number, rows, [], schema=STORED_SCHEMA, per_part=3)
        removed = {row["sha256"] for row in all_rows if row["key"] in keys}
        packs = {row["stored_shard"] for row in all_rows if row["sha256"] in removed} - {None}
        found = take_down(stage, list(versions))
        assert found.packs == packs
        assert found.record is not None
        assert found.record["held_by"] == {
            f"v{number:04d}": held
            for number, rows in versions.items()
            if (
                held := sum(
                    row["sha256"] in removed and (row["drop_reason"] is None or row["stored_shard"] is not None)
                    for row in rows
                )
            )
        }


def test_a_list_with_many_hashes_is_read_as_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.curate.takedown._BLOCK", 3)
    rng = np.random.default_rng(0)
    pool = [hashed(str(i)) for i in range(20)]
    heads = ["", "key:a\n", "# sha256\nkey:a\r\n", f"{pool[0].upper()}\nsubject:b\n", "key:x", "\ufeff", "key:é\r"]
    for head in heads:
        for count in (0, 1, 2, 7, 40):
            tail = "".join(f"sha256:{content}\n" for content in rng.choice(pool, count))
            for text in (head + tail, head + tail + "key:z", head + tail[:-1]):
                if head != "\ufeff":
                    assert TakeDownList.decode(text.encode(), "x").entries == TakeDownList.parse(text, "x").entries
                bare = text.removeprefix("\ufeff")
                assert TakeDownList.decode(text.encode(), "x").entries == TakeDownList.parse(bare, "x").entries
    with pytest.raises(InputError, match="line 1 of the take-down list"):
        TakeDownList.decode(f"md5:1\nsha256:{pool[0]}\n".encode(), "x")


def test_hashes_that_begin_alike_are_told_apart() -> None:
    """Somebody may make files whose hashes share 64 bits."""
    contents = [f"{'ab' * 8}{i:048x}" for i in (5, 3, 9, 3)]
    taken = TakeDownList.parse("\n".join(contents), "list.txt")
    assert [name for _, name in taken.entries] == contents[:3]
    rows = pa.table({name: [contents[2], f"{'ab' * 8}{4:048x}", contents[1]] for name in ("sha256", "key", "subject")})
    named, counts = taken.matches(rows.append_column("source", rows["key"]))
    assert (named.tolist(), counts.tolist()) == ([True, False, True], [0, 1, 1])
