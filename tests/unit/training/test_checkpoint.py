"""Checkpoints: complete or not listed, verified by hash, and bound to one run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lookalike.errors import BusyError, InputError
from lookalike.storage import Store, open_store
from lookalike.storage.lease import Fence
from lookalike.storage.local import LocalStore
from lookalike.training import checkpoint
from lookalike.training.average import EmaConfig
from lookalike.training.checkpoint import CheckpointState
from lookalike.training.engine import PlainEngine
from lookalike.training.optimizer import STATE_NAMES, OptimizerConfig

STATE = CheckpointState(step=3, fingerprint="run", base_sha256="base")


def engine_of(seed: int, decay: float | None = 0.99) -> PlainEngine:
    torch.manual_seed(seed)
    model = nn.Linear(4, 3)
    return PlainEngine(model, dict(model.named_parameters()), OptimizerConfig(), 1, EmaConfig(decay))


def steps(engine: PlainEngine, count: int, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + count):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        engine.set_learning_rate(0.05)
        loss = engine.model(inputs).square().mean()
        engine.accumulate(loss)
        engine.finish_step()
        losses.append(float(loss))
    return losses


def test_resuming_repeats_the_undisturbed_losses(tmp_path: Path) -> None:
    undisturbed = engine_of(0)
    expected = steps(undisturbed, 6)

    store = open_store(str(tmp_path))
    first = engine_of(0)
    steps(first, 3)
    checkpoint.write(store, STATE, checkpoint.snapshot(first.state()))

    second = engine_of(1)  # other initial weights: all that matters comes from the checkpoint
    state, tensors = checkpoint.load(store, 3)
    second.load_state(tensors, optimizer_steps=state.step)
    assert steps(second, 3, first=3) == expected[3:]
    for (key, value), (_, other) in zip(second.state(), undisturbed.state(), strict=True):
        assert torch.equal(value, other), key
    _, weights = checkpoint.load(store, 3, without=STATE_NAMES)
    assert set(weights) == {key for key in tensors if key.startswith(("master/", "ema/"))}


def test_a_checkpoint_without_commit_does_not_exist(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    checkpoint.write(store, STATE, checkpoint.snapshot(engine_of(0).state()))
    store.delete("step-00000003/COMMIT")
    assert checkpoint.committed_steps(store) == []


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_write_that_breaks_off_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    store, left, write = open_store(str(tmp_path)), [True] * written, LocalStore.write

    def break_off(target: LocalStore, key: str, data: bytes) -> None:
        left.pop()  # IndexError: the process is gone
        write(target, key, data)

    monkeypatch.setattr(LocalStore, "write", break_off)
    with pytest.raises(IndexError):
        checkpoint.write(store, STATE, checkpoint.snapshot(engine_of(0).state()))
    assert checkpoint.committed_steps(store) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    checkpoint.write(store, STATE, checkpoint.snapshot(engine_of(0).state()))
    part = tmp_path / "step-00000003" / "part-00000.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged.*part-00000"):
        checkpoint.load(store, 3)


def test_state_of_another_model_is_rejected(tmp_path: Path) -> None:
    tensors = dict(engine_of(0).state())
    tensors["master/else"] = tensors.pop("master/bias")
    with pytest.raises(InputError, match="master/bias"):
        engine_of(0).load_state(tensors, optimizer_steps=3)


def test_checkpoint_of_another_run_is_rejected() -> None:
    checkpoint.verify_owner(STATE, "run", "base")
    with pytest.raises(InputError, match="configuration"):
        checkpoint.verify_owner(STATE, "other", "base")
    with pytest.raises(InputError, match="initial bundle"):
        checkpoint.verify_owner(STATE, "run", "other")


def test_pruning_keeps_the_newest_and_removes_leftovers_of_a_crash(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for step in (1, 2, 3, 4):
        state = CheckpointState(step=step, fingerprint="run", base_sha256="base")
        checkpoint.write(store, state, checkpoint.snapshot(engine_of(0).state()))
    store.delete("step-00000001/COMMIT")
    checkpoint.prune(store, keep=2)
    assert checkpoint.committed_steps(store) == [3, 4]
    assert {info.key.split("/")[0] for info in store.list()} == {"step-00000003", "step-00000004"}


def test_keep_every_keeps_further_checkpoints(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for step in range(1, 8):
        state = CheckpointState(step=step, fingerprint="run", base_sha256="base")
        checkpoint.write(store, state, checkpoint.snapshot(engine_of(0).state()))
        checkpoint.prune(store, keep=1, keep_every=3)
    assert checkpoint.committed_steps(store) == [3, 6, 7]


def test_a_snapshot_is_a_copy() -> None:
    engine = engine_of(0)
    parts = checkpoint.snapshot(engine.state())
    before = {key: tensor.clone() for key, tensor in parts[0].items()}
    steps(engine, 2)
    for key, tensor in parts[0].items():
        assert torch.equal(tensor, before[key]), key


def test_a_rank_that_does_not_write_takes_part_in_every_collective() -> None:
    state = engine_of(0).state()
    assert checkpoint.snapshot(state, keep=False) == []
    assert next(state, None) is None


def test_moving_average_follows_its_definition_and_is_exported() -> None:
    engine, reference = engine_of(0), engine_of(0, decay=None)
    expected = dict(checkpoint.trained_weights(dict(reference.state())))
    for step in range(4):
        steps(engine, 1, first=step)
        steps(reference, 1, first=step)
        decay = min(0.99, (2 + step) / (11 + step))
        weights = checkpoint.trained_weights(dict(reference.state()))
        expected = {name: decay * mean + (1 - decay) * weights[name] for name, mean in expected.items()}
    found = checkpoint.trained_weights(dict(engine.state()))
    torch.testing.assert_close(found, expected)
    with engine.averaged():
        torch.testing.assert_close(dict(engine.model.named_parameters()), expected, check_dtype=False)
    torch.testing.assert_close(dict(engine.model.named_parameters()), weights)


def test_large_states_are_split_into_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_PART_BYTES", 40)
    store = open_store(str(tmp_path))
    engine = engine_of(0)
    checkpoint.write(store, STATE, checkpoint.snapshot(engine.state()))
    assert sum(info.key.endswith(".safetensors") for info in store.list()) > 1
    _, tensors = checkpoint.load(store, 3)
    for key, tensor in engine.state():
        torch.testing.assert_close(tensors[key], tensor)


def run_with_checkpoints(tmp_path: Path, *steps: int, lease: int = 0) -> Store:
    """A run with a checkpoint of two parts after each of ``steps``."""
    run = open_store(str(tmp_path / "run"))
    fence, held = Fence(run.child("lease"), lease) if lease else None, f"lease/{lease:08d}.json"
    if lease:
        run.write(held, b"{}")
    for step in steps:
        parts = [{"master/a": torch.full((3,), float(step))}, {"master/b": torch.ones(3)}]
        state = CheckpointState(step=step, fingerprint="run", base_sha256="base")
        checkpoint.write(run.child(checkpoint.CHECKPOINTS), state, parts, fence)
    run.delete(held)
    return run


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    commit = json.loads(path.read_text())
    change(commit)
    path.write_text(json.dumps(commit))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a missing part": lambda folder: (folder / "part-00001.safetensors").unlink(),
    "a missing state": lambda folder: (folder / "state.json").unlink(),
    "a truncated part": lambda folder: (folder / "part-00000.safetensors").write_bytes(b"x"),
    "an empty part": lambda folder: (folder / "part-00000.safetensors").write_bytes(b""),
    "a part too many": lambda folder: (folder / "part-00002.safetensors").write_bytes(b"of another rank"),
    "an empty COMMIT": lambda folder: (folder / "COMMIT").write_bytes(b""),
    "a list as COMMIT": lambda folder: (folder / "COMMIT").write_text("[]"),
    "an empty object": lambda folder: (folder / "COMMIT").write_text("{}"),
    "files of another type": lambda folder: rewrite(folder / "COMMIT", lambda c: c.update(files=7)),
    "a part that is not named": lambda folder: rewrite(
        folder / "COMMIT", lambda c: c["files"].pop("part-00001.safetensors")
    ),
    "a state that is not named": lambda folder: rewrite(folder / "COMMIT", lambda c: c["files"].pop("state.json")),
    "a file elsewhere": lambda folder: rewrite(
        folder / "COMMIT", lambda c: c["files"].update({"../x": c["files"].pop("part-00001.safetensors")})
    ),
    "another step's COMMIT": lambda folder: rewrite(folder / "COMMIT", lambda c: c.update(step=3)),
    "no hash": lambda folder: rewrite(
        folder / "COMMIT", lambda c: c["files"]["part-00000.safetensors"].update(sha256=None)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_incomplete_checkpoint_is_named_and_the_previous_one_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_with_checkpoints(tmp_path, 2, 4, 6)
    DAMAGE[damage](tmp_path / "run" / "checkpoints" / "step-00000006")
    assert checkpoint.newest(run) == 4
    assert "checkpoint step-00000006 is not complete, the previous one is used: " in caplog.text
    assert "/step-00000006/" in caplog.text
    with pytest.raises(InputError, match="step-00000006/"):
        checkpoint.load(run.child(checkpoint.CHECKPOINTS), 6)
    state, tensors = checkpoint.load(run.child(checkpoint.CHECKPOINTS), 4)
    assert state.step == 4
    assert tensors.keys() == {"master/a", "master/b"}


def test_an_incomplete_checkpoint_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_checkpoints(tmp_path, 6)
    DAMAGE["a missing part"](tmp_path / "run" / "checkpoints" / "step-00000006")
    monkeypatch.setattr(checkpoint, "load_safetensors", lambda data: pytest.fail("a part was loaded"))
    with pytest.raises(InputError, match=r"missing.*part-00001"):
        checkpoint.load(run.child(checkpoint.CHECKPOINTS), 6)


def test_a_run_whose_checkpoints_are_all_incomplete_does_not_start_again(tmp_path: Path) -> None:
    run = run_with_checkpoints(tmp_path, 2)
    DAMAGE["a missing part"](tmp_path / "run" / "checkpoints" / "step-00000002")
    with pytest.raises(InputError, match="no checkpoint of the run is complete"):
        checkpoint.newest(run)


def test_commit_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    run = run_with_checkpoints(tmp_path, 2, 4)
    folder = tmp_path / "run" / "checkpoints" / "step-00000004"
    files = json.loads((folder / "COMMIT").read_text())["files"]
    (folder / "COMMIT").write_text(json.dumps({name: file["sha256"] for name, file in files.items()}))
    (folder / "part-00009.safetensors").write_bytes(b"a killed attempt's")  # they wrote over each other's files
    assert checkpoint.newest(run) == 4
    assert checkpoint.load(run.child(checkpoint.CHECKPOINTS), 4)[1].keys() == {"master/a", "master/b"}
    (folder / "part-00001.safetensors").unlink()
    assert checkpoint.newest(run) == 2


def test_commits_of_an_older_lease_after_a_newer_one_are_ignored(tmp_path: Path) -> None:
    run_with_checkpoints(tmp_path, 2, 4)  # of an earlier version, without a number
    run = run_with_checkpoints(tmp_path, 6, 8, lease=1)
    run_with_checkpoints(tmp_path, 8, 10, lease=2)  # which resumed at step 6
    run_with_checkpoints(tmp_path, 10, 12, 14, lease=1)  # which was stopped meanwhile
    store = run.child(checkpoint.CHECKPOINTS)
    assert checkpoint.committed_steps(store) == [2, 4, 6, 8, 10]
    assert checkpoint.newest(run) == 10
    assert checkpoint.latest_lease(run) == 2
    checkpoint.prune(store, keep=2)
    assert {info.key.split("/")[0] for info in store.list()} == {"step-00000008.2", "step-00000010.2"}


def test_a_lost_lease_prevents_the_commit(tmp_path: Path) -> None:
    run = run_with_checkpoints(tmp_path, 2, lease=1)
    run.write("lease/00000002.json", b"of another worker")
    with pytest.raises(BusyError, match="another worker, which has number 2"):
        run_with_checkpoints(tmp_path, 4, lease=1)
    assert checkpoint.newest(run) == 2
