"""The output of ``--print_config`` is a file that gives the same configuration again."""

from pathlib import Path

import pytest

from lookalike import config as configs
from lookalike.training.config import TrainConfig
from pipelines.curate import CurateConfig
from pipelines.evaluate import EvaluateConfig
from pipelines.finetune import FinetuneConfig
from pipelines.promote import PromoteConfig

REQUIRED = {
    TrainConfig: ["--dataset", "d", "--run", "r"],
    FinetuneConfig: ["--customer", "c", "--subject", "s", "--photos", "p", "--store", "t"],
    CurateConfig: ["--raw", "r", "--dataset", "d"],
    EvaluateConfig: ["--bundle", "b", "--suite", "s", "--out", "o"],
    PromoteConfig: ["--model", "m", "--scores", "s", "--out", "o"],
}


@pytest.mark.parametrize("config_class", REQUIRED, ids=lambda found: found.__name__)
def test_printed_configuration_round_trips(
    config_class: type, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(SystemExit) as ended:
        configs.parse(config_class, [*REQUIRED[config_class], "--print_config"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "Unable to serialize" not in printed
    (tmp_path / "config.yaml").write_text(printed)
    assert configs.parse(config_class, [f"--config={tmp_path / 'config.yaml'}"]) == configs.parse(
        config_class, REQUIRED[config_class]
    )
