"""Checkpoints: trainable state by parameter name in safetensors, hashes per file, and a COMMIT marker written last.

``checkpoints/step-00000120/part-00000.safetensors … state.json COMMIT``. Keys are ``master/NAME``, ``exp_avg/NAME``,
``exp_avg_sq/NAME`` and, where an average is kept, ``ema/NAME``, full fp32 tensors: any number of ranks can take them
up. Frozen weights are not in it; the run's initial bundle holds them, and its hash is in ``state.json``.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from lookalike.config import canonical_json
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.storage import Store, read_object
from lookalike.training.engine import AVERAGE, MASTER
from lookalike.training.ledger import LEDGER

CHECKPOINTS = "checkpoints"
COMMIT = "COMMIT"
_STATE = "state.json"
_REMOVE = "remove this checkpoint's COMMIT to continue from the one before"
_PART_BYTES = 256 * 2**20
_COMMITTED = re.compile(r"^step-(\d{8})/COMMIT$")


@dataclass(frozen=True)
class CheckpointState:
    """Where a run stands, and whose it is."""

    step: int
    """Optimizer steps done; the next one has this 0-based number."""
    fingerprint: str
    """Of the run's configuration: a checkpoint of another run is refused."""
    base_sha256: str
    """Of the initial bundle, which holds the frozen weights."""


def folder_of(step: int) -> str:
    """Folder of the checkpoint after ``step`` optimizer steps."""
    return f"step-{step:08d}"


def committed_steps(store: Store) -> list[int]:
    """Steps of complete checkpoints, ascending; a folder without COMMIT does not count."""
    return sorted(int(m.group(1)) for info in store.list("step-") if (m := _COMMITTED.match(info.key)))


def newest(run: Store) -> int:
    """Steps done at the newest complete checkpoint of the run in ``run``; 0 where it never had one.

    Raises InputError where its checkpoints are gone: each leaves a part of the ledger, which is written before it, so a
    second part without any checkpoint tells of one that was complete.
    """
    checkpoints = run.child(CHECKPOINTS)
    steps = committed_steps(checkpoints)
    if not steps and sum(1 for _ in run.list(f"{LEDGER}/")) > 1:
        raise InputError("a run's checkpoints are gone", value=checkpoints.uri, fix="give another --run to begin anew")
    return max(steps, default=0)


def snapshot(tensors: Iterable[tuple[str, Tensor]], *, keep: bool = True) -> list[dict[str, Tensor]]:
    """An engine's state in parts. Every rank iterates ``tensors`` (a collective); only the one with ``keep`` has them.

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


def write(store: Store, state: CheckpointState, parts: Sequence[Mapping[str, Tensor]]) -> None:
    """Store a snapshot; ``COMMIT`` goes last."""
    target = store.child(folder_of(state.step))
    hashes: dict[str, str] = {}

    def put(name: str, data: bytes) -> None:
        hashes[name] = hashlib.sha256(data).hexdigest()
        target.write(name, data)

    for number, part in enumerate(parts):
        put(f"part-{number:05d}.safetensors", save_safetensors(dict(part)))
    put(_STATE, canonical_json(asdict(state)).encode())
    target.write(COMMIT, canonical_json(hashes).encode())


def load(store: Store, step: int, without: tuple[str, ...] = ()) -> tuple[CheckpointState, dict[str, Tensor]]:
    """Read a checkpoint, but for tensors of the kinds ``without``, and verify every file's hash; raises InputError that
    names the damaged file."""
    source = store.child(folder_of(step))
    left_out = tuple(f"{kind}/" for kind in without)
    tensors: dict[str, Tensor] = {}
    state: CheckpointState | None = None
    for name, expected in read_object(source, COMMIT).items():
        data = source.read(name)
        if hashlib.sha256(data).hexdigest() != expected:
            raise InputError(
                "a checkpoint's file is damaged",
                value=source.uri_of(name),
                fix=_REMOVE,
            )
        if name == _STATE:
            with decoding("a checkpoint's state", source.uri_of(name), fix=_REMOVE):
                state = CheckpointState(**json.loads(data))
        else:
            with decoding("a safetensors file", source.uri_of(name), fix=_REMOVE):
                found = load_safetensors(data).items()
            tensors.update((key, tensor) for key, tensor in found if not key.startswith(left_out))
    if state is None:
        raise InputError("a checkpoint lacks its state", value=source.uri, fix="remove its COMMIT")
    return state, tensors


def verify_owner(found: CheckpointState, fingerprint: str, base_sha256: str) -> None:
    """Refuse state that another configuration or another base has written."""
    for what, theirs, ours in (
        ("configuration", found.fingerprint, fingerprint),
        ("initial bundle", found.base_sha256, base_sha256),
    ):
        if theirs != ours:
            raise InputError(
                f"the checkpoint belongs to a run with another {what}",
                value=f"{theirs[:12]} instead of {ours[:12]}",
                fix="give this run its own --run prefix",
            )


def prune(store: Store, keep: int, keep_every: int | None = None) -> None:
    """Remove checkpoints but the ``keep`` newest and those at multiples of ``keep_every`` steps.

    Folders that a crash left without COMMIT go as well.
    """
    steps = committed_steps(store)
    kept = {folder_of(step) for step in steps[-keep:]}
    if keep_every is not None:
        kept |= {folder_of(step) for step in steps if step % keep_every == 0}
    newest = folder_of(steps[-1]) if steps else ""
    doomed = [
        info.key for info in store.list("step-") if (folder := info.key.split("/")[0]) not in kept and folder < newest
    ]
    for key in sorted(doomed, key=lambda key: not key.endswith(COMMIT)):  # the marker first: never half a checkpoint
        store.delete(key)


def trained_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a run has made of its parameters, by name, fp32: their average where one is in the checkpoint's tensors."""
    for kind in (AVERAGE, MASTER):
        if found := {
            key.removeprefix(f"{kind}/"): value for key, value in tensors.items() if key.startswith(f"{kind}/")
        }:
            return found
    return {}
