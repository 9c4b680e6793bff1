"""Scorers and captioner, on the models that packages bring and on small checkpoints of transformers' own classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageDraw

from lookalike.annotators.base import checked
from lookalike.annotators.captioner import Captioner
from lookalike.annotators.hub import fixed_shape
from lookalike.annotators.scorers import ClassArea, ClassProbability, OpenNsfw, TextShare
from lookalike.errors import ConfigError, InputError
from tests.drawn import draw

WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[DEC]", "[ENC]", "a", "photo", "of", "cup", "red", "on", "snow"]


def test_text_over_a_picture_covers_a_share_of_it_and_a_picture_without_text_has_none() -> None:
    image = draw(1, 2, 512)
    picture = Image.fromarray(image)
    ImageDraw.Draw(picture).text((40, 220), "SAMPLE STOCK PHOTO", fill="white", font_size=42)
    share = TextShare().load("cpu")
    plain, written = share([image, np.asarray(picture)], ["thing", "thing"])
    assert plain == 0
    assert 0.04 < written < 0.15
    ring = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(ring).ellipse((60, 20, 196, 236), outline="black", width=24)
    assert TextShare(min_characters=1).load("cpu")([np.asarray(ring)], [""])[0] > 0.2  # it is read as 0
    assert share([np.asarray(ring)], ["thing"]) == [0]


def test_a_harmless_picture_is_safe_and_the_score_is_a_probability() -> None:
    images = [draw(0, i, 256) for i in range(3)]
    scores = OpenNsfw().load("cpu")(images, ["thing"] * 3)
    assert all(0 <= score < 0.2 for score in scores)
    assert len(set(scores)) == 3
    assert OpenNsfw().load("cpu:0")(images, ["thing"] * 3) == pytest.approx(scores, abs=1e-5)  # as one tensor


@pytest.mark.parametrize(("value", "low_enough"), [(11.0, False), (float("nan"), False), (-0.1, False), (9.5, True)])
def test_score_outside_its_range_is_an_error(tmp_path: Path, value: float, low_enough: bool) -> None:
    scorer = ClassProbability(str(image_classifier(tmp_path, ["score"])))
    if low_enough:
        assert checked(scorer, value) == value
        return
    with pytest.raises(InputError, match="outside of 0 to 10"):
        checked(scorer, value)


def test_a_classifier_gives_the_probability_of_a_label_or_its_one_output(tmp_path: Path) -> None:
    folder = image_classifier(tmp_path / "three", ["good", "bad", "ugly"])
    image = draw(0, 0)
    shares = [ClassProbability(str(folder), label).load("cpu")([image], [""])[0] for label in ("good", "bad", "ugly")]
    assert sum(shares) == pytest.approx(1)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**processor(images=Image.fromarray(image), return_tensors="pt")).logits[0]
    assert shares == pytest.approx(logits.softmax(0).tolist(), abs=1e-6)
    one = ClassProbability(str(image_classifier(tmp_path / "one", ["score"])))
    assert np.isfinite(one.load("cpu")([image], [""])).all()
    assert one.revision != ClassProbability(str(folder)).revision
    with pytest.raises(ConfigError, match="no such label"):
        ClassProbability(str(folder), "lovely").load("cpu")


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        _ = ClassProbability(str(tmp_path / "nowhere")).revision
    with pytest.raises(ConfigError, match="nowhere"):
        _ = Captioner(str(tmp_path / "nowhere")).revision


def test_the_area_of_a_class_is_a_share(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPSegConfig(
        text_config={**small, "vocab_size": len(WORDS), "max_position_embeddings": 16, "eos_token_id": 3},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16, reduce_dim=16, extract_layers=[0, 1], decoder_num_attention_heads=2,
        decoder_intermediate_size=32, conditional_layer=0,
    )  # fmt: skip
    transformers.CLIPSegForImageSegmentation(config).save_pretrained(tmp_path)
    vocabulary = {word: i for i, word in enumerate(["<|startoftext|>", "<|endoftext|>", "a</w>", "c", "u", "p</w>"])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[])
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    transformers.CLIPSegProcessor(processor, tokenizer).save_pretrained(tmp_path)
    images, classes = [draw(0, i) for i in range(3)], ["cup", "up", "cu"]
    alone = ClassArea(str(tmp_path)).load("cpu")
    shares = alone(images, classes)
    assert all(0 <= share <= 1 for share in shares)
    model = transformers.CLIPSegForImageSegmentation.from_pretrained(tmp_path).eval()
    inputs = transformers.CLIPSegProcessor.from_pretrained(tmp_path)(
        text=["a photo of a cup"], images=[Image.fromarray(images[0])], return_tensors="pt"
    )
    with torch.no_grad():
        assert shares[0] == pytest.approx(float((model(**inputs).logits > 0).float().mean()), abs=2e-3)
    assert alone(images[::-1], classes[::-1]) == shares[::-1]
    assert ClassArea(str(tmp_path)).load("cpu:0")(images, classes) == pytest.approx(shares, abs=2e-3)  # as one tensor


def test_equal_images_get_equal_captions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 32}
    ids = {"bos_token_id": 4, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 1}
    config = transformers.BlipConfig(
        text_config={**text, **ids}, vision_config={**small, "image_size": 32, "patch_size": 8}
    )
    transformers.BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    processor = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(processor, tokenizer).save_pretrained(tmp_path)
    describe = Captioner(str(tmp_path), max_tokens=6).load("cpu")
    images = [draw(0, 0), draw(3, 1), draw(0, 0)]
    said = describe(images)
    assert said[0] == said[2] == describe(images[:1])[0]
    assert set(" ".join(said).split()) <= set(WORDS)
    assert Captioner(str(tmp_path), max_tokens=6).load("cpu:0")(images) == said  # as one tensor


def image_classifier(folder: Path, labels: list[str]) -> Path:
    """A small ViT in transformers' format."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_batch_is_one_tensor_only_if_all_images_become_the_same_shape(tmp_path: Path) -> None:
    folder = image_classifier(tmp_path, ["good", "bad"])
    assert fixed_shape(transformers.AutoImageProcessor.from_pretrained(folder))
    (folder / "preprocessor_config.json").unlink()
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(
        folder
    )  # keeps the aspect ratio, as the processors of Qwen-VL do
    assert not fixed_shape(transformers.AutoImageProcessor.from_pretrained(folder))


def test_a_filled_batch_gives_an_image_the_same_score_beside_any_others(tmp_path: Path) -> None:
    images = [draw(i, i, 64) for i in range(8)]
    score = ClassProbability(str(image_classifier(tmp_path, ["good", "bad"])), "good").load("cpu:0")
    together = score(images, [""] * 8)
    for i, image in enumerate(images):
        assert round(score([image] * 8, [""] * 8)[i], 3) == round(together[i], 3)
    assert score(images[::-1], [""] * 8)[::-1] == pytest.approx(together, abs=1e-6)
