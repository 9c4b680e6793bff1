from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lookalike.errors import InputError
from lookalike.storage import open_store
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import FiltersConfig, Photos
from pipelines.curate.filters.taken_down import TakenDown
from pipelines.curate.sources import Inputs
from pipelines.curate.takedown import TakeDownList, pin, pinned_hash, read_list

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
    assert TakeDownList.parse(line, "list.txt").named(ROWS).tolist() == named


@pytest.mark.parametrize("line", ["cup", "subject:", "sha256:123", "url:x", CONTENT[:-1]])
def test_a_line_that_is_no_entry_is_refused(line: str) -> None:
    with pytest.raises(InputError, match=r"line 2 .* list\.txt"):
        TakeDownList.parse(f"key:a\n{line}", "list.txt")


def test_a_copy_is_read_whatever_becomes_of_the_list(tmp_path: Path) -> None:
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


def test_a_list_counts_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    def fingerprint(text: str, name: str) -> str:
        (tmp_path / f"{name}.txt").write_text(text)
        pinned = pin(str(tmp_path / f"{name}.txt"), open_store(str(tmp_path / name)))
        filters = FiltersConfig(taken_down=TakenDown(pinned))
        return Inputs.of(CurateConfig(raw="raw", dataset=name, filters=filters), []).fingerprint

    assert fingerprint("key:a", "one") == fingerprint("key:a", "two")
    assert fingerprint("key:a", "one") != fingerprint("key:b", "three")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(np.arange(256, dtype=np.uint8).tobytes())
    with pytest.raises(InputError, match=r"line 2 .* not UTF-8 text"):
        pin(str(tmp_path / "list.txt"), open_store(str(tmp_path / "dataset")))
