"""Pretrain a preset's MLLM to caption photos, and measure it on held-out subjects."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lookalike.bundles.load import load_preprocessor
from lookalike.models.batch import Batch, to_batch
from lookalike.models.components import NO_CODE
from lookalike.models.presets import ASSETS_DIR, load_preset
from lookalike.process_wide import alone_in_process
from lookalike.training import parts
from pipelines.pretrain import augment
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.subjects import Subject

_MEASURED = 256  # held-out images


@alone_in_process()
def pretrain_mllm(
    config: PretrainConfig, initial: Path, train: list[Subject], held_out: list[Subject], run: Path
) -> dict[str, Any]:
    import transformers
    from transformers import AutoTokenizer

    preset = load_preset(config.preset)
    preprocessor = load_preprocessor(initial)
    mllm = getattr(transformers, preset.mllm.architecture).from_pretrained(initial / "mllm").train()

    def batch(subjects: list[Subject], rng: np.random.Generator, size: int) -> Batch:
        prompts, references = [], []
        for _ in range(size):
            subject = subjects[rng.integers(len(subjects))]
            count = min(int(rng.integers(1, preset.references.max_references + 1)), len(subject.images))
            chosen = rng.choice(len(subject.images), count, replace=False)
            prompts.append(" ; ".join(subject.captions[i] for i in chosen))
            side = preset.mllm.image_size
            references.append([augment.jitter(subject.images[i], side, rng) for i in chosen])
        return to_batch(preprocessor(prompts, references, truncate_prompts=True))

    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, parts.Metrics]:
        return parts.caption_loss(mllm, batch(train, rng, config.fit.batch_size))

    last = parts.fit(mllm, loss, config.fit, run, config.part)
    mllm.eval()
    rng = np.random.default_rng(config.fit.seed)
    tokenizer = AutoTokenizer.from_pretrained(initial / "mllm", **NO_CODE)
    # Words of the sample world by meaning; words that the captions do not use do not count.
    words_of: dict[str, list[str]] = json.loads((ASSETS_DIR / "mini.word_groups.json").read_text())
    groups = {name: set(tokenizer.convert_tokens_to_ids(words)) for name, words in words_of.items()}
    fresh = [batch(held_out, rng, 32) for _ in range(_MEASURED // 32)]
    target = Path(config.out) / "mllm"
    mllm.half().save_pretrained(target)
    mllm.float()
    saved = target / "config.json"  # transformers would compute in the file's half precision
    saved.write_text(saved.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    for file in sorted((initial / "mllm").iterdir()):
        if not (target / file.name).exists():
            (target / file.name).write_bytes(file.read_bytes())
    return {
        "last": last,
        "parameters": sum(p.numel() for p in mllm.parameters()),
        "token_accuracy_held_out_subjects": parts.caption_accuracy(mllm, fresh, groups),
    }
