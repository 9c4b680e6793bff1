"""One rank of ZeRO-3 on a bundle: two steps, then the bytes of what it holds, as JSON. Started by a test."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lookalike.bundles.load import build_model
from lookalike.models.batch import Batch
from lookalike.models.dit import References
from lookalike.models.joint import import_model_classes
from lookalike.models.weights import strict_weights
from lookalike.training.config import TrainConfig
from lookalike.training.deepspeed_setup import prepare_process
from lookalike.training.workers import WorkerConfig
from lookalike.training.zero import ZeroEngine


def main(rank: int, ranks: int, port: str, bundle: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    import_model_classes()
    prepare_process(torch.device("cpu"))
    engine = ZeroEngine(
        build=lambda: build_model(bundle),
        weights=lambda model: strict_weights(model, bundle),
        select=select,
        config=TrainConfig(
            dataset="none", run="none", batch_size=ranks, micro_batch_size=1, workers=WorkerConfig(num_workers=ranks)
        ),
    )
    for _ in range(2):
        step(engine)
    if rank == 0:
        print(json.dumps(held(engine)))
    dist.barrier()
    dist.destroy_process_group()


def select(model: Any) -> dict[str, torch.nn.Parameter]:
    model.enable_gradient_checkpointing()
    trainable: dict[str, torch.nn.Parameter] = model.set_trainable(("aggregator", "transformer"))
    return trainable


def step(engine: ZeroEngine) -> None:
    module: Any = engine.model
    image_token = module.module.mllm.config.image_token_id
    ids = torch.tensor([[image_token] * 16 + [9] * 8])
    pixels, present = torch.zeros(1, 1, 3, 64, 64, dtype=torch.uint8), torch.ones(1, 1, dtype=torch.bool)
    ones = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch(ids, ones, ids == image_token, pixels, torch.ones(1, 2, 3), pixels, present)
    references = References(torch.zeros(1, 1, 64, 16), batch.reference_mask, (8, 8))
    predicted = engine.model(batch, torch.zeros(1, 64, 16), torch.full((1,), 0.5), references, (8, 8))
    engine.accumulate(predicted.square().mean())
    engine.finish_step()


def held(engine: Any) -> dict[str, int]:
    """Bytes of distinct storages by what they are for."""
    zero3, model = engine._engine.optimizer, engine.model.module
    tensors: list[tuple[str, torch.Tensor]] = []
    for flat in zero3.fp32_partitioned_groups_flat:
        tensors.append(("optimizer", flat))
        tensors += [("optimizer", value) for value in zero3.optimizer.state[flat].values() if value.numel() > 1]
    tensors.append(("gradients", zero3.grad_partitions_flat_buffer))
    tensors += [("bucket", bucket.buffer) for bucket in zero3.ipg_buckets.values()]
    for parameter in model.parameters():
        tensors.append(("trainable" if parameter.requires_grad else "frozen", parameter.ds_tensor))
        tensors.append(("whole", parameter.data))
    found: dict[int, tuple[str, int]] = {}
    for kind, tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            found.setdefault(storage.data_ptr(), (kind, storage.nbytes()))
    totals: dict[str, int] = {}
    for kind, size in found.values():
        totals[kind] = totals.get(kind, 0) + size
    return totals


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
