"""The settings of Ray Train for one attempt."""

from pathlib import Path

from lookalike.storage import open_store
from pipelines.train.worker_group import attempt_config


def test_each_attempt_has_its_own_name_in_ray_train(tmp_path: Path) -> None:
    first, second = (attempt_config(open_store(str(tmp_path)), max_failures=2) for _ in range(2))
    assert first.name != second.name  # Ray Train resumes silently what lies under a name
    assert first.storage_path == second.storage_path == str(tmp_path / "ray")
