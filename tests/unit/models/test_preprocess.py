import numpy as np
import pytest
import torch

from lookalike.bundles.load import load_preprocessor
from lookalike.errors import InputError
from lookalike.models.batch import to_batch
from lookalike.models.preprocess import RAGGED, Preprocessor, fit_square, ragged
from lookalike.pixels import crop_resize


@pytest.fixture(scope="module")
def preprocessor(bundle_dir) -> Preprocessor:
    return load_preprocessor(bundle_dir)


def test_shapes_are_fixed_and_absent_references_stand_behind_the_text(preprocessor, pictures) -> None:
    images = pictures(3)
    columns = preprocessor(["a red mug", "a blue box on the sand"], [images[:2], images[2:]], pictures(2, seed=1))
    assert {name: (values.shape, str(values.dtype)) for name, values in columns.items()} == {
        "input_ids": ((2, preprocessor.length), "int64"),
        "attention_mask": ((2, preprocessor.length), "bool"),
        "image_mask": ((2, preprocessor.length), "bool"),
        "tiles": ((2,), "object"),
        "normalisation": ((2, 2, 3), "float32"),
        "references": ((2,), "object"),
        "reference_mask": ((2, 2), "bool"),
        "target": ((2, 3, 64, 64), "uint8"),
    }
    assert columns["image_mask"].sum(1).tolist() == [32, 32]
    assert columns["reference_mask"].tolist() == [[True, True], [True, False]]
    text_end = int(columns["attention_mask"][1].sum())
    absent = columns["image_mask"][1] & ~columns["attention_mask"][1]
    assert np.flatnonzero(absent).tolist() == list(range(text_end, text_end + 16))
    for name in RAGGED:
        assert [(row.shape, row.dtype) for row in columns[name]] == [
            ((2, 3, 64, 64), "uint8"),
            ((1, 3, 64, 64), "uint8"),
        ]
    batch = to_batch(columns)
    assert not batch.pixel_values[1, 1].any()
    assert not batch.references[1, 1].any()
    assert abs(batch.pixel_values[0]).max() <= 1


def test_unused_reference_slots_are_cut_off(preprocessor, pictures) -> None:
    columns = preprocessor(["a red mug", "a box"], [pictures(1), pictures(1, seed=1)])
    batch = to_batch(columns)
    assert batch.references.shape[1] == batch.pixel_values.shape[1] == batch.reference_mask.shape[1] == 1
    assert batch.image_mask.sum(1).tolist() == [16, 16]
    assert batch.input_ids.shape[1] == int(columns["attention_mask"].sum(1).max())
    swapped = batch.with_conditions_of([1, 0])
    assert swapped.input_ids[0].tolist() == batch.input_ids[1].tolist()


def test_tiles_are_normalised_on_the_device_bit_by_bit_as_numpy_does() -> None:
    """All values of a byte, with the means and deviations of all families and of ImageNet."""
    pairs = [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.1, 0.9, 0), (3, 1, 7)),
    ]
    values = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (3, 16, 16))
    normalisation = np.array(pairs, np.float32)
    batch = to_batch(
        {
            **{name: np.ones((3, 1), bool) for name in ("attention_mask", "image_mask", "reference_mask", "input_ids")},
            "tiles": ragged([values[None]] * 3),
            "references": ragged([values[None]] * 3),
            "normalisation": normalisation,
        }
    )
    mean, deviation = normalisation[:, 0, :, None, None], normalisation[:, 1, :, None, None]
    expected = (values / np.float32(255) - mean) / deviation
    assert batch.pixel_values.dtype == torch.float32
    assert (batch.pixel_values[:, 0].numpy().view(np.uint32) == expected.view(np.uint32)).all()


def test_images_of_the_vae_can_be_left_out(preprocessor, pictures) -> None:
    """Their sizes stay, from which grids of tokens follow."""
    whole = preprocessor(["a mug"], [pictures(1)], pictures(1, seed=1))
    columns = preprocessor(["a mug"], [pictures(1)], pictures(1, seed=1), vae_pixels=False)
    assert (columns["tiles"][0] == whole["tiles"][0]).all()
    batch = to_batch(columns)
    assert batch.target is not None
    assert batch.target.shape == (1, 0, 64, 64)
    assert batch.references.shape == (1, 1, 0, 64, 64)


def test_template_is_tokenised_as_a_whole(preprocessor, pictures, bundle_dir) -> None:
    from transformers import AutoTokenizer

    text = "<|im_start|><img>" + "<IMG_CONTEXT>" * 16 + "</img>a red mug<|im_end|>"
    expected = AutoTokenizer.from_pretrained(bundle_dir / "mllm")(text)["input_ids"]
    columns = preprocessor(["a red mug"], [pictures(1)])
    assert columns["input_ids"][0, : len(expected)].tolist() == expected


def test_pixels_equal_transformers_own_image_processor(preprocessor, pictures, bundle_dir) -> None:
    from transformers import GotOcr2ImageProcessorPil

    image = pictures(1, 64, 64)[0]
    expected = GotOcr2ImageProcessorPil.from_pretrained(bundle_dir / "mllm")(image, return_tensors="np")["pixel_values"]
    found = to_batch(preprocessor(["a"], [[image]])).pixel_values[0, 0]
    np.testing.assert_allclose(found, expected[0], atol=1e-6)


def test_nothing_is_stretched() -> None:
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = 255
    assert (crop_resize(wide, 50, 50)[:, 1:-1] == 255).all()
    square = fit_square(wide, 60)
    assert (square[:19] == 127).all()
    assert (square[22:38, 24:36] == 255).all()


def test_bad_input_is_refused_with_its_value(preprocessor, pictures) -> None:
    good = pictures(1)[0]
    cases = [
        (["red " * 60], [[good]], "prompt of 60 tokens exceeds the limit of 40"),
        ([None], [[good]], "the prompt is not text"),
        (["a mug"], [[good] * 3], "3 references are more than the preset mini takes"),
        (["a mug"], [[np.zeros((8, 8, 3), np.uint8)]], "8x8"),
        (["a mug"], [[np.zeros((20, 20_000, 3), np.uint8)]], "20000x20"),
        (["a mug"], [[np.zeros((64, 64), np.uint8)]], "not a uint8 RGB"),
        (["a mug"], [], "1 prompts with 0 lists of references"),
    ]
    for prompts, references, message in cases:
        with pytest.raises(InputError, match=message):
            preprocessor(prompts, references)
    with pytest.raises(InputError, match="the target has 1x1 pixels"):
        preprocessor(["a mug"], [[good]], [np.zeros((1, 1, 3), np.uint8)])


def test_a_long_prompt_can_be_cut_for_training(preprocessor, pictures, caplog) -> None:
    columns = preprocessor(["red " * 60], [pictures(1)], truncate_prompts=True)
    cut = preprocessor(["red " * 40], [pictures(1)])
    assert (columns["input_ids"] == cut["input_ids"]).all()
    assert "The following part of your input was truncated" in caplog.text
    assert repr(("red " * 20).strip()) in caplog.text


def test_travels_to_workers(preprocessor, pictures) -> None:
    import pickle

    again = pickle.loads(pickle.dumps(preprocessor))
    assert (again(["a mug"], [pictures(1)])["input_ids"] == preprocessor(["a mug"], [pictures(1)])["input_ids"]).all()
