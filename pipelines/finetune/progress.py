"""What a finetune reports while it runs: events, tags of its MLflow run, and what its photos were found to be."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from lookalike.documents import render_json
from lookalike.errors import BusyError, InputError, LookalikeError, StoppedError, first_line
from lookalike.progress.cancel import CancelledError
from lookalike.progress.events import State
from lookalike.storage import Store, read_members
from lookalike.tracking import open_resilient
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.examine import Examination, examine
from pipelines.finetune.photos import PhotoSet
from pipelines.finetune.request import accept, attempt_of, record_decision

log = logging.getLogger(__name__)

EXAMINED = "examined.json"
_RUN_RECORD = "tracking.json"  # of the training run, with the id of its MLflow run
_TAG = "lookalike.finetune"
_STATUS = {"failed": "FAILED", "cancelled": "KILLED"}  # of the MLflow run


class Progress:
    """Appends the events of one finetune. Its request is accepted when it is made."""

    def __init__(self, home: Store, place: Store, config: FinetuneConfig, request: str) -> None:
        self._place, self._config = place, config
        self._events = accept(home, place, config, request)
        self._attempt = attempt_of(place)

    def reached(self, state: State, **data: Any) -> None:
        """Record that the finetune has reached ``state``, once for each attempt."""
        self._events.append(state, data, of=self._attempt)

    def finished(self, result: dict[str, Any]) -> None:
        """Record the gate's decision. Called after the result is written."""
        self._tag(record_decision(self._place, result))

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Record how the block ends, if by an error: ``cancelled`` or ``failed``. A stop that resumes is neither."""
        try:
            yield
        except CancelledError:
            self._end("cancelled", {})
            raise
        except (StoppedError, BusyError):
            raise
        except LookalikeError as error:
            self._end("failed", {"reason": error.what, "fix": error.fix})
            raise
        except Exception as error:
            self._end("failed", {"reason": f"{type(error).__name__}: {first_line(error)}"})
            raise

    def _end(self, state: State, data: dict[str, Any]) -> None:
        try:
            self.reached(state, **data)
            self._tag(state)
        except LookalikeError as problem:  # and the first error is raised
            log.warning("the event %s is not recorded: %s", state, problem)

    def _tag(self, state: State) -> None:
        """Set the state as a tag of the training's MLflow run, if it has one."""
        run = self._place.child("run")
        if not run.exists(_RUN_RECORD):
            return
        try:
            run_id = read_members(run, _RUN_RECORD, {"tracking_run": str})["tracking_run"]
            if run_id:
                experiment = self._config.customer
                tracker = open_resilient(self._config.tracking, experiment, run_id=run_id, spool=run)
                tracker.set_tags({_TAG: state})
                tracker.finish(_STATUS.get(state, "FINISHED"))
        except LookalikeError as error:
            log.warning("the state %s is not in MLflow: %s", state, error)


def check_subject(config: FinetuneConfig, place: Store, photos: PhotoSet, progress: Progress) -> None:
    """Examine the photos once, record what they are (``examined.json``), and append ``checked``.

    Raises InputError: they show two subjects, and ``config.allow_several_subjects`` is not set.
    """
    if photos.raw:  # curation counts them
        progress.reached("checked")
        return
    if place.exists(EXAMINED):
        found = read_members(place, EXAMINED, {"photos": list, "groups": list})
    else:
        found = document_of(examine(config, photos))
        place.write(EXAMINED, render_json(found))
    refuse_groups(config, found["groups"])
    uses = [photo["use"] for photo in found["photos"]]
    progress.reached("checked", photos={use: uses.count(use) for use in ("train", "held out", "refused")})


def document_of(examination: Examination) -> dict[str, Any]:
    """Return the examination as plain JSON values."""
    return {
        "photos": [asdict(photo) for photo in examination.photos],
        "groups": [list(group) for group in examination.groups],
        "triplets": examination.triplets,
    }


def refuse_groups(config: FinetuneConfig, groups: list[list[str]]) -> None:
    """Raise InputError if the photos show two subjects and the request does not allow it."""
    if groups and not config.allow_several_subjects:
        named = " and ".join(", ".join(group[:4]) + (", …" if len(group) > 4 else "") for group in groups)
        raise InputError(
            f"the photos look like those of two subjects: {named}",
            value=config.photos,
            fix="leave the photos of one subject, or set --allow_several_subjects if they show the same one",
        )
