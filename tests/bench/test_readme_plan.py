"""Compare the README's tables of the paper's size with the plan; takes half a minute, so it is not a unit test."""

from pathlib import Path

from lookalike import config as configs
from pipelines.train.cost_report import PlanConfig, plan

README = Path(__file__).parents[2] / "README.md"
PAPER = "jobs/configs/train-paper.yaml"


def test_readme_agrees_with_the_papers_plan() -> None:
    readme = README.read_text()
    text = plan(configs.parse(PlanConfig, [f"--config={PAPER}", "--gpus", "8x80"]))
    lines = [line for line in text.splitlines() if line.startswith(("| 7,4", "| 512² ", "| 1024² "))]
    assert len(lines) == 1 + 2 * 4
    assert [line for line in lines if line not in readme] == []
    stages = [
        line.split(" | ") for line in text.splitlines() if line.startswith(("| mllm | 2", "| mllm+references | 1"))
    ]
    first, second = (f"{float(stage[4]):.1f}" for stage in stages)
    assert f"takes {first} PFLOPs in the first stage and {second} in the second" in " ".join(readme.split())
