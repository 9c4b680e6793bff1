"""Write and read checkpoints: trainable state by parameter name in safetensors; COMMIT, written last, names the files.

``checkpoints/step-00000120.2/part-00000.safetensors … state.json COMMIT``, where 2 is the number of the writer's lease
(:mod:`lookalike.training.marks`). Keys are ``master/NAME``, the optimizer's ``exp_avg/NAME`` and
``exp_avg_sq/NAME``, and ``ema/NAME`` if an average is kept: full fp32 tensors, from which any number of ranks can
resume. The run's initial bundle holds the frozen weights, and ``state.json`` its hash.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from lookalike.config import canonical_json
from lookalike.documents import decoding, parse_object, parse_record
from lookalike.errors import InputError
from lookalike.storage import Store
from lookalike.storage.lease import Fence
from lookalike.training.average import AVERAGE
from lookalike.training.engine import MASTER
from lookalike.training.ledger import LEDGER, recorded
from lookalike.training.marks import Mark, current, parse_mark

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
COMMIT = "COMMIT"
_STATE = "state.json"
_REMOVE = "remove this checkpoint's COMMIT to continue from the one before"
_PART_BYTES = 256 * 2**20
_PART = re.compile(r"^part-\d{5}\.safetensors$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class CheckpointState:
    """The step of a checkpoint, and the run that it belongs to."""

    step: int
    """Optimizer steps done; the next step has this 0-based number."""
    fingerprint: str
    """Fingerprint of the run's configuration; a checkpoint of another run is rejected."""
    base_sha256: str
    """SHA-256 of the initial bundle, which holds the frozen weights."""


@dataclass(frozen=True)
class _File:
    sha256: str
    bytes: int | None = None  # None in a COMMIT of an earlier version


@dataclass(frozen=True)
class _Commit:
    """The content of COMMIT."""

    step: int
    lease: int
    parts: int
    files: dict[str, _File]


def committed_steps(store: Store) -> list[int]:
    """Return the steps of the valid checkpoints with a COMMIT, ascending."""
    return [mark.step for mark in _committed(store)]


def newest(run: Store) -> int:
    """Return the steps done at the newest complete checkpoint of the run in ``run``; 0 if it never had one.

    A checkpoint with a missing, an additional or a truncated file is named in a warning, and the previous one is used.
    Raises InputError if no checkpoint is complete, or if all are gone: a part of the ledger is written before each
    checkpoint, so a second part without any checkpoint shows that one was complete.
    """
    checkpoints = run.child(CHECKPOINTS)
    marks = _committed(checkpoints)
    for mark in reversed(marks):
        try:
            _verified_files(checkpoints, mark)
        except InputError as error:
            log.warning("checkpoint %s is not complete, the previous one is used: %s", mark, error)
        else:
            return mark.step
    if marks:
        what, lost = "no checkpoint of the run is complete", "the files that the warnings name"
    elif sum(1 for _ in run.list(f"{LEDGER}/")) > 1:
        what, lost = "the run's ledger shows a checkpoint, but no checkpoint is there", "the checkpoints"
    else:
        return 0
    raise InputError(what, value=checkpoints.uri, fix=f"restore {lost}, or give another --run to start again")


def latest_lease(run: Store) -> int:
    """Return the highest lease number under which something of the run was written."""
    marks = [parse_mark(info.key.split("/")[0]) for info in run.child(CHECKPOINTS).list("step-")]
    return max((mark.lease for mark in [*marks, *recorded(run)] if mark), default=0)


def snapshot(tensors: Iterable[tuple[str, Tensor]], *, keep: bool = True) -> list[dict[str, Tensor]]:
    """Collect an engine's state in parts; a rank without ``keep`` takes part in the collective and keeps nothing.

    The tensors are copies already (:meth:`lookalike.training.engine.Engine.state`).
    """
    parts: list[dict[str, Tensor]] = []
    size = _PART_BYTES
    for key, tensor in tensors:
        if not keep:
            continue
        if size + tensor.nbytes > _PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][key] = tensor.contiguous()
        size += tensor.nbytes
    return parts


def write(
    store: Store, state: CheckpointState, parts: Sequence[Mapping[str, Tensor]], fence: Fence | None = None
) -> None:
    """Store a snapshot, ``COMMIT`` last. Raises BusyError if another process holds the run's lease by then."""
    mark = Mark(state.step, fence.number) if fence else Mark(state.step)
    target = store.child(str(mark))
    files: dict[str, _File] = {}

    def put(name: str, data: bytes) -> None:
        files[name] = _File(hashlib.sha256(data).hexdigest(), len(data))
        target.write(name, data)

    for number, part in enumerate(parts):
        put(f"part-{number:05d}.safetensors", save_safetensors(dict(part)))
    put(_STATE, canonical_json(asdict(state)).encode())
    if fence:
        fence.check()
    commit = _Commit(mark.step, mark.lease, len(parts), files)
    target.write(COMMIT, canonical_json(asdict(commit)).encode())


def load(store: Store, step: int, without: tuple[str, ...] = ()) -> tuple[CheckpointState, dict[str, Tensor]]:
    """Read a checkpoint except the tensors of the kinds ``without``, and verify every file's hash.

    Raises InputError that names the damaged or missing file.
    """
    mark = next((mark for mark in _committed(store) if mark.step == step), Mark(step))
    source = store.child(str(mark))
    left_out = tuple(f"{kind}/" for kind in without)
    tensors: dict[str, Tensor] = {}
    state: CheckpointState | None = None
    for name, file in _verified_files(store, mark).items():
        data, where = source.read(name), source.uri_of(name)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise InputError("a checkpoint's file is damaged", value=where, fix=_REMOVE)
        if name == _STATE:
            state = parse_record(CheckpointState, data, where, fix=_REMOVE)
            continue
        with decoding("a safetensors file", where, fix=_REMOVE):
            found = load_safetensors(data).items()
        tensors.update((key, tensor) for key, tensor in found if not key.startswith(left_out))
    if state is None or state.step != step:
        raise InputError("a checkpoint has the state of another step", value=source.uri, fix=_REMOVE)
    return state, tensors


def _committed(store: Store) -> list[Mark]:
    keys = (info.key.split("/") for info in store.list("step-"))
    return current(mark for key in keys if key[1:] == [COMMIT] and (mark := parse_mark(key[0])))


def _verified_files(store: Store, mark: Mark) -> dict[str, _File]:
    """Return the files that COMMIT names, after checking names and sizes; loads nothing.

    Raises InputError that names the first file that is missing, additional or of another size.
    """
    source = store.child(str(mark))
    files = _commit(source, mark)
    sizes = {info.key: info.size for info in source.list()}
    for name, file in files.items():
        if name not in sizes:
            raise InputError("a checkpoint's file is missing", value=source.uri_of(name), fix=_REMOVE)
        if file.bytes not in (None, sizes[name]):
            what = f"a checkpoint's file has {sizes[name]} bytes instead of {file.bytes}"
            raise InputError(what, value=source.uri_of(name), fix=_REMOVE)
    has_sizes = any(file.bytes is not None for file in files.values())
    if has_sizes and (more := sorted(name for name in sizes if _PART.match(name) and name not in files)):
        raise InputError("a checkpoint has a part that COMMIT does not name", value=source.uri_of(more[0]), fix=_REMOVE)
    return files


def _commit(source: Store, mark: Mark) -> dict[str, _File]:
    """Read the files that COMMIT names. Earlier versions wrote an object of names and hashes."""
    data, where = source.read(COMMIT), source.uri_of(COMMIT)
    values = parse_object(data, where, fix=_REMOVE)
    if any(isinstance(value, str) for value in values.values()):
        hashes = {name: _File(str(value)) for name, value in values.items()}
        commit = _Commit(mark.step, mark.lease, len(hashes) - 1, hashes)
    else:
        commit = parse_record(_Commit, data, where, fix=_REMOVE)
    files, parts = commit.files, len(commit.files) - 1
    expected = {_STATE} | {f"part-{number:05d}.safetensors" for number in range(parts)}
    hashed = all(_SHA256.match(file.sha256) for file in files.values())
    of_mark = (commit.step, commit.lease, commit.parts) == (mark.step, mark.lease, parts)
    if files.keys() != expected or not hashed or not of_mark:
        raise InputError("a checkpoint's COMMIT does not name the files of this checkpoint", value=where, fix=_REMOVE)
    return files


def verify_owner(found: CheckpointState, fingerprint: str, base_sha256: str) -> None:
    """Raise InputError for state that another configuration or another base has written."""
    for what, theirs, ours in (
        ("configuration", found.fingerprint, fingerprint),
        ("initial bundle", found.base_sha256, base_sha256),
    ):
        if theirs != ours:
            problem, value = f"the checkpoint belongs to a run with another {what}", f"{theirs[:12]}, not {ours[:12]}"
            raise InputError(problem, value=value, fix="give this run its own --run prefix")


def prune(store: Store, keep: int, keep_every: int | None = None) -> None:
    """Remove all checkpoints except the ``keep`` newest and those at multiples of ``keep_every`` steps.

    Also removes folders that a crash left without COMMIT, and those of a process whose lease was lost.
    """
    marks = _committed(store)
    if not marks:
        return
    kept = {mark for mark in marks if keep_every is not None and mark.step % keep_every == 0} | set(marks[-keep:])
    doomed = [
        info.key
        for info in store.list("step-")
        if (mark := parse_mark(info.key.split("/")[0]))
        and mark not in kept
        and (mark < marks[-1] or mark.lease < marks[-1].lease)
    ]
    doomed.sort(key=lambda key: not key.endswith(COMMIT))  # the marker first, so that no reader uses half a checkpoint
    for key in doomed:
        store.delete(key)


def trained_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trained parameters by name, fp32: their average if the checkpoint has one."""
    kind = AVERAGE if any(key.startswith(f"{AVERAGE}/") for key in tensors) else MASTER
    return {key.removeprefix(f"{kind}/"): value for key, value in tensors.items() if key.startswith(f"{kind}/")}
