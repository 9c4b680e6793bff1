"""Several runs in shared passes: each learns what it learns alone, whoever joins, leaves, or diverges beside it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lookalike.bundles.load import load_model, load_preprocessor
from lookalike.diffusion.flow import FlowConfig
from lookalike.errors import ConfigError
from lookalike.models.presets import LoraConfig
from lookalike.models.stacked_lora import Adapter, AdapterStack, new_adapter
from lookalike.models.subject import SubjectModel
from lookalike.models.vae import load_vae
from lookalike.storage import open_store
from lookalike.tracking import open_tracker
from lookalike.training import checkpoint
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.engine import PlainEngine
from lookalike.training.epoch_plan import EpochPlan
from lookalike.training.history import History
from lookalike.training.loop import Loop, TrainingDivergedError
from lookalike.training.loop_config import CheckpointConfig, DropoutConfig, ValidationConfig
from lookalike.training.micro_batch import MicroBatch
from lookalike.training.objective import DenoisingObjective
from lookalike.training.ranks import Rank
from lookalike.training.shared_passes import SharedPasses
from lookalike.training.trainable import add_loras, trainable_parts
from lookalike.training.workers import WorkerConfig

SAMPLES = 6
PROMPTS = ["a red mug", "a dog on the wet sand of a beach", "a toy"]


@dataclass(frozen=True)
class Customer:
    """A run: its LoRA, its length, its batches, and its photos."""

    name: str
    lora: LoraConfig
    steps: int = 4
    batch: int = 2
    micro: int = 2
    seed: int = 0
    references: int = 1
    conditions: Literal["mllm", "mllm+references"] = "mllm+references"
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    poisoned: bool = False
    """Whether its third step has images that give no finite loss."""


SHORT = Customer("short", LoraConfig(rank=4), steps=3, seed=3)
LONG = Customer("long", LoraConfig(rank=8, alpha=4.0), steps=6, batch=4, micro=2, references=2)
OTHER = Customer("other", LoraConfig(rank=8, target_modules=("to_q", "add_k_proj")), steps=4, batch=3, micro=1, seed=9)
TEXT = Customer("text", LoraConfig(rank=2), steps=4, conditions="mllm", dropout=DropoutConfig(mllm=0.5))
ALL = (SHORT, LONG, OTHER, TEXT)


@pytest.fixture(scope="module")
def base(bundle_dir: Path, perturb: Callable[..., Any]) -> Callable[[], SubjectModel]:
    """Return a new copy of a base whose every part has an effect."""
    return lambda: perturb(load_model(bundle_dir))


@pytest.fixture(scope="module")
def vae(bundle_dir: Path) -> nn.Module:
    return load_vae(bundle_dir)


@dataclass(frozen=True)
class Setup:
    """What all runs of a test share."""

    bundle: Path
    vae: nn.Module
    folder: Path

    def loop(self, customer: Customer, model: nn.Module, trainable: dict[str, nn.Parameter]) -> Loop:
        config = self.config(customer)
        flow = FlowConfig.from_bundle(self.bundle)
        objective = DenoisingObjective(model, self.vae, flow, config.dropout, config.seed, torch.device("cpu"))
        store = open_store(config.run)
        return Loop(
            config=config,
            rank=Rank(),
            engine=PlainEngine(model, trainable, config.optimizer, config.accumulation(1), config.ema),
            objective=objective,
            plan=EpochPlan(SAMPLES, customer.batch, customer.seed),
            store=store,
            history=History(store, open_tracker("none:", "none"), customer.steps, write=True),
            fingerprint=customer.name,
            base_sha256="base",
        )

    def config(self, customer: Customer) -> TrainConfig:
        phase = PhaseConfig(
            name="only", steps=customer.steps, conditions=customer.conditions, warmup_steps=1, learning_rate=0.01
        )
        return TrainConfig(
            dataset="none",
            run=str(self.folder / customer.name),
            base=str(self.bundle),
            adapter=customer.lora,
            stages=[phase],
            batch_size=customer.batch,
            micro_batch_size=customer.micro,
            seed=customer.seed,
            dropout=customer.dropout,
            workers=WorkerConfig(num_workers=0),
            validation=ValidationConfig(samples=0),
            checkpoint=CheckpointConfig(every=2),
        )

    def batches(self, customer: Customer) -> Iterator[MicroBatch]:
        random = np.random.default_rng(len(customer.name))
        images = random.integers(0, 256, (SAMPLES, 1 + customer.references, 64, 64, 3), dtype=np.uint8)
        prompts = [PROMPTS[index % 3] for index in range(SAMPLES)]
        columns = load_preprocessor(self.bundle)(prompts, [list(each[1:]) for each in images], list(images[:, 0]))
        ids = np.array([f"{customer.name}-{index}" for index in range(SAMPLES)])
        columns = {**columns, "sample_id": ids, "subject": ids, "weight": np.ones(SAMPLES, np.float32)}
        plan = EpochPlan(SAMPLES, customer.batch, customer.seed)
        for step in range(checkpoint.newest(open_store(self.config(customer).run)), customer.steps):
            for part in plan.slots(step).reshape(-1, customer.micro):
                found = {name: values[np.maximum(part, 0)] for name, values in columns.items()}
                weight = np.where(part >= 0, np.nan if customer.poisoned and step == 2 else 1, 0).astype(np.float32)
                yield MicroBatch({**found, "step": np.full(customer.micro, step), "weight": weight})


@pytest.fixture
def setup(bundle_dir: Path, vae: nn.Module, tmp_path: Path) -> Callable[[str], Setup]:
    return lambda name: Setup(bundle_dir, vae, tmp_path / name)


def alone(setup: Setup, customer: Customer, model: SubjectModel) -> dict[str, Tensor]:
    """Train as a run of its own does, with peft's LoRA in the model."""
    config = setup.config(customer)
    add_loras(config, model)
    trainable = model.set_trainable(trainable_parts(config))
    setup.loop(customer, model, trainable).run(setup.batches(customer))
    return {name: parameter.detach().clone() for name, parameter in trainable.items()}


class Fleet:
    """Runs that share one base."""

    def __init__(self, setup: Setup, model: SubjectModel) -> None:
        self.setup, self.model, self.stack = setup, model, AdapterStack(model)
        self.passes = SharedPasses(self.stack, setup.vae, FlowConfig.from_bundle(setup.bundle), "cpu")
        self.adapters: dict[str, Adapter] = {}
        self.errors: dict[str, Exception | None] = {}

    def join(self, customer: Customer) -> None:
        adapter = self.adapters[customer.name] = new_adapter(self.model, customer.lora, customer.seed)
        loop = self.setup.loop(customer, self.model, adapter.parameters)
        assert self.passes.join(customer.name, loop, adapter, self.setup.batches(customer)) is None

    def step(self) -> None:
        self.errors |= {end.name: end.error for end in self.passes.step()}

    def finish(self) -> dict[str, dict[str, Tensor]]:
        while len(self.passes):
            self.step()
        return {
            name: {key: value.detach().clone() for key, value in adapter.parameters.items()}
            for name, adapter in self.adapters.items()
        }


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm, of all weights together."""
    assert found.keys() == expected.keys()
    difference = torch.cat([(found[name] - expected[name]).flatten() for name in expected])
    return float(difference.norm() / torch.cat([value.flatten() for value in expected.values()]).norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])
def test_each_run_learns_what_it_learns_alone(
    setup: Callable[[str], Setup], base: Callable[[], SubjectModel], dtype: torch.dtype, bound: float
) -> None:
    expected = {customer.name: alone(setup("alone"), customer, base().to(dtype)) for customer in ALL}
    fleet = Fleet(setup("fleet"), base().to(dtype))
    for customer in (SHORT, LONG, TEXT):
        fleet.join(customer)
    fleet.step()
    fleet.join(OTHER)  # later than the others, while LONG is in the middle of a step
    found = fleet.finish()
    assert fleet.errors == dict.fromkeys(expected)
    for name, weights in expected.items():
        begin = new_adapter(fleet.model, next(c for c in ALL if c.name == name).lora, 0).parameters
        assert found[name].keys() == begin.keys()
        print(f"{name}: {distance(found[name], weights):.1e} apart in {dtype}")
        assert found[name][next(iter(weights))].dtype == dtype
        assert distance(found[name], weights) < bound, name
    moved = {name: max(float(w.abs().max()) for key, w in found[name].items() if ".lora_B." in key) for name in found}
    assert min(moved.values()) > 0.005, moved  # they did learn


def test_a_run_that_leaves_resumes_from_its_checkpoint_and_learns_the_same(
    setup: Callable[[str], Setup], base: Callable[[], SubjectModel]
) -> None:
    expected = alone(setup("alone"), LONG, base())
    fleet = Fleet(setup("fleet"), base())
    for customer in (SHORT, LONG):
        fleet.join(customer)
    for _ in range(2 * 3 + 1):  # three steps of two micro batches, and the first of the fourth
        fleet.step()
    fleet.passes.leave("long")
    assert checkpoint.newest(open_store(fleet.setup.config(LONG).run)) == 2
    fleet.join(OTHER)
    fleet.step()
    fleet.join(LONG)
    assert distance(fleet.finish()["long"], expected) < 1e-4


def test_a_run_that_diverges_ends_alone(setup: Callable[[str], Setup], base: Callable[[], SubjectModel]) -> None:
    def trained(name: str, *customers: Customer) -> Fleet:
        fleet = Fleet(setup(name), base())
        for customer in customers:
            fleet.join(customer)
        fleet.finish()
        return fleet

    beside, other = (replace(OTHER, name=name, batch=2, micro=2) for name in ("beside", "poison"))
    calm, disturbed = trained("calm", beside, other), trained("disturbed", beside, replace(other, poisoned=True))
    assert isinstance(disturbed.errors["poison"], TrainingDivergedError)
    assert disturbed.errors["beside"] is None
    found, expected = (fleet.adapters["beside"].parameters for fleet in (disturbed, calm))
    assert all(torch.isfinite(value).all() for value in found.values())
    assert distance(found, expected) < 1e-4  # it is alone in the last step, in which the number of rows is another


def test_no_rows_routed_is_the_base(base: Callable[[], SubjectModel]) -> None:
    model = base()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stack, layer = AdapterStack(model), model.transformer.transformer_blocks[0].attn.to_q
    rows, adapter = torch.randn(2, 3, layer.in_features), new_adapter(model, LoraConfig(rank=2), 0)
    for name, parameter in adapter.parameters.items():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    plain = layer(rows)
    with stack.route([(None, 1), (adapter, 1)]):
        routed = layer(rows)
    assert torch.equal(routed[0], plain[0])
    assert not torch.allclose(routed[1], plain[1])
    assert torch.equal(layer(rows), plain)
    stack.close()
    with stack.route([(None, 2)]):
        assert torch.equal(layer(rows), plain)
    assert model.state_dict().keys() == before.keys()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_lora_with_dropout_is_refused(base: Callable[[], SubjectModel]) -> None:
    with pytest.raises(ConfigError, match=r"depend on the adapters beside it.*dropout=0\.1.*alone"):
        new_adapter(base(), LoraConfig(dropout=0.1), 0)
