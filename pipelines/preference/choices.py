"""The files that judges save from a page: which are valid, and which judges pass the attention checks."""

import json
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Literal

import numpy as np
from pydantic import ConfigDict

from lookalike.data.text import decode_text
from lookalike.documents import parse_record
from lookalike.errors import InputError
from lookalike.evaluation.preference import Vote
from lookalike.storage import Store, locate_object, open_store, read_at_most
from pipelines.preference.pairs import Key

log = logging.getLogger(__name__)

FORMAT = "lookalike-preference-1"
_JUDGE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_MOST_FILES = 10_000
_MAX_MIB = 4  # of a file; a choice takes about 120 bytes
_FIX = "ask the judge to save the choices again, or leave the file out"
_RESULTS = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True)
class Choice:
    """One answer of a judge. ``first`` and ``second`` are the images of the pair as in its key."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    pair: str
    criterion: str
    choice: Literal["first", "second", "tie"]
    left: Literal["first", "second"]
    """The image that was at the left, or above."""
    ms: int
    """Time from the appearance of the images to the choice."""


@dataclass(frozen=True)
class Export:
    """The file that a page exports."""

    format: str
    page: str
    """Id of the page."""
    judge: str
    """Id of the judge: lower-case letters, digits, '_' and '-'."""
    choices: list[Choice]
    checksum: str
    """CRC-32 of the other members, which shows truncation and edits by accident; it is not a signature."""


@dataclass(frozen=True)
class Judge:
    """A judge, and whether the votes count."""

    judge: str
    file: str
    choices: int
    checks: int
    """Attention checks that were answered."""
    checks_right: int
    repeats: int
    """Repeated pairs of which both were answered."""
    repeats_consistent: int
    """Those answered with the same image; a tie in one of the two is not a contradiction."""
    left_share: float | None
    """Share of the left (upper) image among the choices of models' images that are not ties; far from 0.5 it means that
    the judge prefers a side."""
    median_s: float
    """Median time of a choice."""
    kept: bool
    """Whether the votes count."""
    reason: str
    """Why not."""


def read_exports(uris: Sequence[str], key: Key) -> tuple[dict[str, tuple[str, Export]], list[dict[str, str]]]:
    """Read the exports at ``uris``: the file and its content by judge, and each file that is left out, with a reason.

    Of a judge's files that agree, the one with the most choices counts; files that contradict each other are all left
    out. Raises InputError if a location has no file, or no file can be used.
    """
    valid: dict[str, list[tuple[str, Export]]] = {}
    left_out: list[dict[str, str]] = []
    for where, store, name in _files(uris):
        try:
            export = parse_export(read_at_most(store, name, _MAX_MIB, "the limit"), where, key)
            valid.setdefault(export.judge, []).append((where, export))
        except InputError as error:
            left_out.append({"file": where, "reason": error.what})
    exports = {}
    for judge, files in sorted(valid.items()):
        kept, reasons = _one_of(files)
        left_out += [{"file": where, "reason": reason} for where, reason in reasons.items()]
        if kept is not None:
            exports[judge] = kept
    for row in left_out:
        log.warning("%s is left out: %s", row["file"], row["reason"])
    if not exports:
        what = f"none of {len(left_out)} files of choices can be used: {left_out[0]['reason']}"
        raise InputError(what, value=left_out[0]["file"], fix=_FIX)
    return exports, left_out


def parse_export(data: bytes, where: str, key: Key) -> Export:
    """Parse one export of the page of ``key``. Raises InputError if it is another file, damaged or of another page."""
    export = parse_record(Export, decode_text(data, where), where, fix=_FIX)

    def refuse(what: str, value: object) -> InputError:
        return InputError(f"{what}: {value!r:.80}", value=where, fix=_FIX)

    if export.format != FORMAT:
        raise refuse("not choices of this version of the page", export.format)
    if checksum(export) != export.checksum:
        raise refuse("the choices were edited or truncated: their checksum differs from", export.checksum)
    if export.page != key.page:
        raise refuse("the choices are of another page", export.page)
    if not _JUDGE.fullmatch(export.judge):
        raise refuse("the judge's id is not 1 to 32 lower-case letters, digits, '_' and '-'", export.judge)
    if not export.choices:
        raise refuse("the file has no choices, judge", export.judge)
    answered = set()
    for row in export.choices:
        if row.pair not in key.pairs or row.criterion not in key.criteria or row.ms < 0:
            raise refuse("the page has no such question", row)
        if (row.pair, row.criterion) in answered:
            raise refuse("a question is answered twice", row)
        answered.add((row.pair, row.criterion))
    return export


def checksum(export: Export) -> str:
    """CRC-32 (hex) of the canonical JSON of an export, as the page computes it."""
    content = [export.format, export.page, export.judge, [asdict(row) for row in export.choices]]
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def assess(where: str, export: Export, key: Key, min_right: float, min_consistent: float) -> Judge:
    """Compare a judge's answers with the attention checks and repeats of the page."""
    answers = {(row.pair, row.criterion): row.choice for row in export.choices}
    checks = right = repeats = consistent = 0
    for (pair_id, criterion), choice in answers.items():
        pair = key.pairs[pair_id]
        if pair.kind == "check":
            checks += 1
            right += choice == ("first" if pair.first == "subject" else "second")
        elif pair.kind == "repeat" and (before := answers.get((pair.repeats, criterion))) is not None:
            repeats += 1
            consistent += {choice, before} != {"first", "second"}
    of_models = [row for row in export.choices if key.pairs[row.pair].kind != "check" and row.choice != "tie"]
    reason = ""
    if any(pair.kind == "check" for pair in key.pairs.values()) and not checks:
        reason = "answered no attention check"
    elif checks and right < min_right * checks:
        reason = f"{right} of {checks} attention checks right, at least {min_right:.0%} are asked for"
    elif repeats and consistent < min_consistent * repeats:
        reason = f"{consistent} of {repeats} repeated pairs consistent, at least {min_consistent:.0%} are asked for"
    return Judge(
        *(export.judge, where, len(export.choices), checks, right, repeats, consistent),
        left_share=float(np.mean([row.choice == row.left for row in of_models])) if of_models else None,
        median_s=float(np.median([row.ms for row in export.choices])) / 1000,
        kept=not reason,
        reason=reason,
    )


def votes_of(export: Export, key: Key, criterion: str) -> list[Vote]:
    """The judge's votes on pairs of models by ``criterion``; repeats do not count again."""
    return [
        Vote(export.judge, pair.id, pair.subject, pair.first, pair.second, _RESULTS[row.choice])
        for row in export.choices
        if row.criterion == criterion and (pair := key.pairs[row.pair]).kind == "models"
    ]


def _files(uris: Sequence[str]) -> Iterator[tuple[str, Store, str]]:
    """Yield location, store and key of each file once, in the order of locations."""
    files: dict[str, tuple[Store, str]] = {}
    for uri in uris:
        if uri.endswith(".json"):
            store, name = locate_object(uri)
            names = [name]
        else:
            store = open_store(uri)
            listed = (info.key for info in store.list() if info.key.endswith(".json"))
            names = list(islice(listed, _MOST_FILES + 1))
        if not names:
            raise InputError("the folder has no *.json", value=uri, fix="name files that the page exported")
        files |= {store.uri_of(name): (store, name) for name in names}
    if len(files) > _MOST_FILES:
        raise InputError(f"there are more than {_MOST_FILES} files of choices", value=uris[0], fix="name fewer")
    for where, (store, name) in sorted(files.items()):
        if not store.exists(name):
            raise InputError("the file of choices does not exist", value=where, fix="check the name")
        yield where, store, name


def _one_of(files: list[tuple[str, Export]]) -> tuple[tuple[str, Export] | None, dict[str, str]]:
    """Choose between the files of one judge; for each other file the reason why it is left out."""
    answers = [{(row.pair, row.criterion): row.choice for row in export.choices} for _, export in files]
    longest = max(range(len(files)), key=lambda index: len(answers[index]))
    if all(own.items() <= answers[longest].items() for own in answers):
        rest = [where for index, (where, _) in enumerate(files) if index != longest]
        return files[longest], dict.fromkeys(rest, f"all of its choices are also in {files[longest][0]}")
    names = ", ".join(where for where, _ in files)
    reason = f"the judge {files[0][1].judge!r} has files that contradict each other, perhaps two people: {names}"
    return None, dict.fromkeys((where for where, _ in files), reason[:2000])
