"""A suite in a bucket is the suite of the same files on a disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lookalike.data.images import encode_jpeg
from lookalike.storage import open_store
from pipelines.evaluate import EvaluateConfig
from pipelines.evaluate.photos import Photos
from pipelines.evaluate.suite_source import find_suite
from tests.drawn import draw

LIST = """[
 {"prompt": "a mug in the snow", "references": ["mug/00.jpg"]},
 {"prompt": "a mug and a can", "references": ["mug/01.jpg", "can/00.jpg"]}
]"""


def test_suite_of_a_bucket(s3_uri: str, tmp_path: Path) -> None:
    stores = [open_store(str(tmp_path / "suite")), open_store(f"{s3_uri}/suite")]
    for store in stores:
        for number, key in enumerate(["mug/00.jpg", "mug/01.jpg", "can/00.jpg"]):
            store.write(key, encode_jpeg(draw(number, 0, 64)))
        store.write("suite.json", LIST.encode("utf-16"))
    config = EvaluateConfig(bundle="bundle", suite="", out="out")
    local, remote, named = (
        find_suite(replace(config, suite=uri)) for uri in (*(s.uri for s in stores), f"{s3_uri}/suite/suite.json")
    )
    assert local.source.sha256 == remote.source.sha256 == named.source.sha256
    assert local.contents is not None
    assert remote.contents is not None
    for one, other in zip(local.contents.samples, remote.contents.samples, strict=True):
        pixels = [Photos().load(sample.references) for sample in (one, other)]
        assert all(np.array_equal(*pair) for pair in zip(*pixels, strict=True))
