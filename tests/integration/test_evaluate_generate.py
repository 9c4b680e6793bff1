"""Evaluation and generation on a real Ray, with a mini model of random weights and scikit-image's photos."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lookalike.bundles.load import load_model
from lookalike.bundles.manifest import BundleReference
from lookalike.data.images import encode_jpeg
from lookalike.data.triplets import SCHEMA
from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.evaluation.gate import GateConfig, decide
from lookalike.storage import open_store, publish, version_store
from pipelines.actors import ActorConfig
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.generate import GenerateConfig, generate
from tests.snapshots import write_pack, write_tables

pytestmark = pytest.mark.usefixtures("ray_local")

SUBJECTS = ("astronaut", "cat", "coffee", "rocket")
HERE = ActorConfig(count=0)  # the jobs below, and the demo, have actors


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini bundle whose DiT depends on its conditions: weights that are initialised to zero are random."""
    import torch

    from lookalike.bundles.build import materialise
    from lookalike.diffusion.pipeline import SubjectPipeline
    from lookalike.models.presets import load_preset

    start = materialise(load_preset("mini"), tmp_path_factory.mktemp("start"), seed=0)
    pipe = SubjectPipeline.from_pretrained(start)
    generator = torch.Generator().manual_seed(0)
    for parameter in pipe.transformer.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("bundle")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def personal(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A personal bundle: a random LoRA that names ``bundle`` as its base."""
    import torch

    from lookalike.bundles.manifest import ADAPTER, bundle_sha256, read_manifest, read_preset, write_manifest
    from lookalike.models.adapters import save_lora
    from lookalike.models.presets import LoraConfig

    lora = LoraConfig(rank=4)
    model = load_model(bundle)
    model.add_lora(lora)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name.removeprefix("transformer."): 0.2 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.set_trainable(["transformer_lora"]).items()
    }
    folder = tmp_path_factory.mktemp("personal")
    save_lora(folder / ADAPTER, lora, weights)
    write_manifest(folder, read_preset(bundle), BundleReference(str(bundle), bundle_sha256(read_manifest(bundle))))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<subject>/<nn>.jpg`: four crops of each of four photos."""
    from skimage import data

    folder = tmp_path_factory.mktemp("photos")
    pictures = (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())
    for name, image_file in zip(SUBJECTS, pictures, strict=True):
        (folder / name).mkdir()
        for view in range(4):
            crop = image_file[view * 12 : view * 12 + 200, view * 30 : view * 30 + 240]
            (folder / name / f"{view:02d}.jpg").write_bytes(encode_jpeg(np.ascontiguousarray(crop)))
    return folder


@pytest.fixture(scope="module")
def dataset(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of them, all subjects held out."""
    folder = tmp_path_factory.mktemp("dataset")
    store = version_store(open_store(str(folder)), 1)
    files = {(name, view): (photos / name / f"{view:02d}.jpg").read_bytes() for name in SUBJECTS for view in range(4)}
    pack, samples = write_pack(
        store.parent, ((f"{name}-{view}", {"jpg": data}) for (name, view), data in files.items())
    )
    places = dict(zip(files, (sample.members["jpg"] for sample in samples), strict=True))
    hashes = {photo: hashlib.sha256(data).hexdigest() for photo, data in files.items()}
    rows = []
    for name, view in files:
        references = [(name, (view + 1) % 4), (name, (view + 2) % 4)]
        row = {"triplet_id": f"{name}-{view}", "split": "validation", "class_name": "thing", "subject": name}
        row |= {"prompt": f"a {name} on grass, number {view}", "target_image": "", "reference_images": ["", ""]}
        row |= {"target_shard": pack, "reference_shards": [pack, pack], "reference_similarities": [0.8, 0.8]}
        row |= {f"target_{what}": getattr(places[name, view], what) for what in ("offset", "length")}
        row |= {f"reference_{what}s": [getattr(places[r], what) for r in references] for what in ("offset", "length")}
        row |= {"target_sha256": hashes[name, view], "reference_sha256s": [hashes[r] for r in references]}
        rows.append(row)
    written = write_tables(store, pa.Table.from_pylist(rows, schema=SCHEMA))
    publish(open_store(str(folder)), 1, {"version": 1, **written})
    return folder


@pytest.fixture(scope="module")
def quick(bundle: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """A finished evaluation that takes seconds; its CLIP and DINO models are tiny and untrained."""
    scorers = tmp_path_factory.mktemp("scorers")
    config = EvaluateConfig(
        bundle=str(bundle),
        suite=str(dataset),
        out=str(tmp_path_factory.mktemp("scores")),
        max_samples=24,
        subjects=3,
        prompts_per_subject=1,
        stages=["paper", "mllm_only"],
        steps=2,
        clip=str(_tiny_clip(scorers / "clip")),
        dino=str(_tiny_vit(scorers / "dino")),
        actors=HERE,
    )
    evaluate(config)
    return config


def test_evaluation_writes_scores_measurements_images_and_grid(quick: EvaluateConfig) -> None:
    out = Path(quick.out)
    scores = evaluate(quick)  # done already: it reads what is there
    rows = pq.read_table(out / "measurements.parquet").to_pylist()
    by_case = {(row["metric"], row["case"]): row["value"] for row in rows}
    gaps = [value for (metric, _), value in by_case.items() if metric == "loss_gap"]
    assert scores.metrics["loss_gap"].n == len(gaps) == 24
    assert scores.metrics["loss_gap"].mean == pytest.approx(np.mean(gaps))
    for case in {case for metric, case in by_case if metric == "loss_gap"}:
        difference = by_case["loss_shuffled", case] - by_case["loss_right", case]
        assert by_case["loss_gap", case] == pytest.approx(difference)
        assert difference != 0
    assert {"identity", "identity_margin", "mllm_only/identity", "mllm_only/loss_gap"} <= scores.metrics.keys()
    images = sorted(path.relative_to(out / "images").as_posix() for path in out.rglob("images/*/*.png"))
    assert images == [f"{stages}/{name}-0.png" for stages in ("mllm_only", "paper") for name in sorted(SUBJECTS)[:3]]
    assert Image.open(out / "images" / images[0]).size == (64, 64)
    assert Image.open(out / "grid.png").width > 800
    assert scores.config["max_samples"] == 24
    assert scores.suite.version == 1
    assert scores.embedder.startswith("efficientnet-lite0")


def test_shuffled_evaluation_measures_another_subjects_conditions(quick: EvaluateConfig, tmp_path: Path) -> None:
    right = evaluate(quick)
    probe = evaluate(dataclasses.replace(quick, out=str(tmp_path), conditions="shuffled"))
    assert probe.conditions == "shuffled"
    # its first arm has the conditions, noise and levels of the other run's second arm
    assert probe.metrics["loss_right"].mean == pytest.approx(right.metrics["loss_shuffled"].mean, rel=1e-5)
    assert probe.metrics["loss_shuffled"].mean != pytest.approx(right.metrics["loss_shuffled"].mean, rel=1e-5)
    decision = decide(probe, None, GateConfig(floors=[]))
    assert [check.name for check in decision.checks if not check.passed] == ["conditions"]
    assert decide(right, None, GateConfig(floors=[])).passed


def test_a_personal_bundle_is_measured_beside_its_base(
    quick: EvaluateConfig, bundle: Path, personal: Path, tmp_path: Path
) -> None:
    changes = {"subjects": 1, "stages": ["both"], "clip": None, "dino": None}
    scores = evaluate(
        dataclasses.replace(quick, bundle=str(personal), base=str(bundle), out=str(tmp_path), **changes)  # type: ignore[arg-type]
    )
    assert scores.metrics["loss_right"].mean != pytest.approx(scores.metrics["before/loss_right"].mean, rel=1e-4)
    alone = evaluate(quick)  # the same samples, noise and other subjects
    for name in ("loss_right", "loss_shuffled", "loss_gap"):
        assert scores.metrics[f"before/{name}"] == alone.metrics[name]
    pictures = [tmp_path / "images" / when / "both" / "astronaut-0.png" for when in (".", "before")]
    assert not np.array_equal(*(np.asarray(Image.open(image_file)) for image_file in pictures))


def test_another_configuration_does_not_overwrite(quick: EvaluateConfig) -> None:
    with pytest.raises(ConflictError, match="seed"):
        evaluate(dataclasses.replace(quick, seed=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle": "nowhere"}, "no finished bundle"),
        ({"suite": "nowhere"}, "no complete snapshot"),
        ({"split": "train"}, "no train triplets"),
    ],
)
def test_missing_input_is_named(
    quick: EvaluateConfig, tmp_path: Path, change: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        evaluate(dataclasses.replace(quick, out=str(tmp_path / "out"), **change))  # type: ignore[arg-type]


def test_clip_and_dino_are_measured_if_named(quick: EvaluateConfig) -> None:
    scores = evaluate(quick)
    for name in ("clip_i", "clip_t", "dino_i"):
        assert -1 <= scores.metrics[name].low <= scores.metrics[name].high <= 1
        assert scores.metrics[name].n == 3


def _request(bundle: Path, photos: Path, out: Path) -> GenerateConfig:
    return GenerateConfig(
        model=str(bundle),
        out=str(out),
        prompt=["a cat on snow", "a cat, asleep"],
        reference=[str(photos / "cat")],
        num_images=2,
        seed=5,
        steps=2,
        batch_size=3,
        actors=HERE,
    )


def test_invalid_denoising_schedule_is_refused_before_any_work(bundle: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="denoising schedule are out of order"):
        dataclasses.replace(_request(bundle, photos, tmp_path), stages="0.5/0.9")


def test_images_carry_provenance_and_a_killed_generation_resumes(bundle: Path, photos: Path, tmp_path: Path) -> None:
    config = _request(bundle, photos, tmp_path)
    result = generate(config)
    listed = json.loads((tmp_path / "generations.json").read_text())
    assert listed.items() >= result.items()
    assert listed.keys() - result.keys() == {"run", "seal"}
    assert [(image["prompt"], image["seed"]) for image in listed["images"]] == [
        (prompt, seed) for prompt in ("a cat on snow", "a cat, asleep") for seed in (5, 6)
    ]
    for image in listed["images"]:
        with Image.open(tmp_path / image["file"]) as image_file:
            assert image_file.size == (64, 64)
            assert image_file.text["prompt"] == image["prompt"]  # type: ignore[attr-defined]
            assert image_file.text["seed"] == str(image["seed"])  # type: ignore[attr-defined]
            assert image_file.text["bundle_sha256"] == listed["model"]["sha256"]  # type: ignore[attr-defined]
            assert image_file.text["stages"] == listed["model"]["stages"] == "0.95/0.5"  # type: ignore[attr-defined]
    assert [uri.rsplit("/", 1)[1] for uri in listed["references"]] == ["00.jpg", "01.jpg"]
    assert Image.open(tmp_path / "contact_sheet.png").width > 600

    files = [tmp_path / image["file"] for image in result["images"]]
    before = [file.read_bytes() for file in files]
    (tmp_path / "generations.json").unlink()
    files[2].unlink()
    kept = files[0].stat().st_mtime_ns
    generate(config)
    assert files[0].stat().st_mtime_ns == kept
    pixels = [np.asarray(Image.open(io.BytesIO(data)), np.int16) for data in (before[2], files[2].read_bytes())]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1  # alone in its batch now: float sums may differ in the last bit


def test_personal_bundle_is_generated_with_its_own_base(
    bundle: Path, personal: Path, photos: Path, tmp_path: Path
) -> None:
    import shutil

    request = dataclasses.replace(_request(bundle, photos, tmp_path / "own"), prompt=["a cat"], num_images=1)
    pixels = []
    for name, folder in (("own", bundle), ("personal", personal)):
        config = dataclasses.replace(request, model=str(folder), out=str(tmp_path / name))
        pixels.append(np.asarray(Image.open(tmp_path / name / generate(config)["images"][0]["file"])))
    assert not np.array_equal(*pixels)

    copy = shutil.copytree(personal, tmp_path / "copy")
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["base"]["sha256"] = "0" * 64
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="needs the base 000000000000"):
        generate(dataclasses.replace(request, model=str(copy), out=str(tmp_path / "refused")))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reference": ["{photos}/cat/00.jpg"] * 9}, ConfigError, "this model reads"),
        ({"reference": ["{photos}/cat/none.jpg"]}, InputError, "none.jpg"),
        ({"reference": ["{photos}/nobody"]}, InputError, "neither a photo nor a folder"),
        ({"reference": ["{photos}/notes.txt"]}, InputError, "the file is not an image of a supported format"),
        ({"prompt": [" "]}, InputError, "a prompt is empty"),
        ({"prompt": ["a mug\0"]}, ConfigError, "NUL"),
        ({"prompt": [], "prompts_file": "{photos}/empty.txt"}, InputError, "empty"),
        ({"model": "{photos}"}, InputError, "no such object.*bundle.json"),
    ],
)
def test_bad_requests_are_refused_before_any_work(
    bundle: Path,
    photos: Path,
    tmp_path: Path,
    change: dict[str, str | list[str]],
    error: type[Exception],
    message: str,
) -> None:
    (photos / "notes.txt").write_text("no image")
    (photos / "empty.txt").write_text("\n \n")

    def fill(value: str | list[str]) -> str | list[str]:
        return (
            [part.format(photos=photos) for part in value] if isinstance(value, list) else value.format(photos=photos)
        )

    changed = {key: fill(value) for key, value in change.items()}
    with pytest.raises(error, match=message):
        generate(dataclasses.replace(_request(bundle, photos, tmp_path / "out"), **changed))  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "images").exists()


def test_jobs_print_a_result_and_exit_codes(
    run_job: Callable[..., CompletedProcess[str]], bundle: Path, photos: Path, tmp_path: Path
) -> None:
    asked = ["--model", str(bundle), "--reference", str(photos / "rocket"), "--prompt", "a rocket on sand"]
    one = ["--actors.count", "1"]
    done = run_job("generate", *asked, "--num-images", "1", "--steps", "2", "--out", str(tmp_path / "images"), *one)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 images of 1 prompts")
    refused = run_job("generate", *asked, "--reference", str(tmp_path / "none.png"), "--out", str(tmp_path / "other"))
    assert refused.returncode == 2
    assert "none.png" in refused.stderr
    assert "Traceback" not in refused.stderr


def _tiny_clip(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<end>", "a", "on", "grass", "number", *SUBJECTS, *"0123", ","]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=tower | {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", model_max_length=16
    ).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def _tiny_vit(folder: Path) -> Path:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=32
    )
    ViTModel(config).save_pretrained(folder)
    return folder
