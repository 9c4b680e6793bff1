"""A purge on a real S3 server: pages of keys, old versions, delete markers, unfinished uploads."""

import base64
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lookalike.signing import SIGNING_KEY
from lookalike.storage import open_store
from lookalike.storage.claim import claim
from lookalike.storage.purge import entries, pages, purge
from lookalike.storage.s3 import S3Store
from pipelines.erase import EraseConfig, VerifyConfig, erase, verify_receipt


@pytest.fixture
def home(s3_uri: str) -> S3Store:
    """A prefix, with a neighbour whose name begins alike."""
    root = open_store(s3_uri)
    root.write("acme2/kept.txt", b"kept")
    store = root.child("acme")
    assert isinstance(store, S3Store)
    return store


@pytest.fixture
def versioned(s3_uri: str) -> Iterator[S3Store]:
    """A prefix in a bucket that keeps versions."""
    store = open_store(s3_uri)
    assert isinstance(store, S3Store)
    bucket = f"versions-{uuid.uuid4().hex[:12]}"
    store.client.create_bucket(Bucket=bucket)
    store.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    yield S3Store(bucket, "store/acme")
    purge(S3Store(bucket, ""))
    store.client.delete_bucket(Bucket=bucket)


def test_more_than_a_page_of_keys_goes_and_the_neighbour_stays(home: S3Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: home.write(f"a/{number:05d}/ü &<>.txt", b"x"), range(1100)))
    assert sum(len(page) for page in pages(home)) == 1100
    steps: list[int] = []
    assert purge(home, check=steps.append) == 1100
    assert len(steps) >= 2
    assert not [page for page in entries(home) if page]
    assert home.parent.read("acme2/kept.txt") == b"kept"
    assert purge(home) == 0


def test_unfinished_upload_is_aborted(home: S3Store) -> None:
    for prefix in ("acme", "acme2"):
        key = f"{home.parent.prefix}{prefix}/large.bin"  # type: ignore[attr-defined]
        begun = home.client.create_multipart_upload(Bucket=home.bucket, Key=key)
        home.client.upload_part(Bucket=home.bucket, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * 100)
    assert [entry.kind for page in entries(home) for entry in page] == ["upload"]
    assert purge(home) == 1
    assert not [page for page in entries(home) if page]
    assert [entry.kind for page in entries(home.parent.child("acme2")) for entry in page] == ["object", "upload"]  # type: ignore[arg-type]


def test_old_versions_and_delete_markers_go(versioned: S3Store) -> None:
    for data in (b"first", b"second"):
        versioned.write("photo.jpg", data)
    versioned.write("gone.jpg", b"gone")
    versioned.delete("gone.jpg")
    versioned.parent.write("acme2/kept.txt", b"kept")
    kinds = sorted(entry.kind for page in entries(versioned) for entry in page)
    assert kinds == ["delete marker", "object", "version", "version"]
    assert purge(versioned) == 4
    listed = versioned.client.list_object_versions(Bucket=versioned.bucket)
    assert [item["Key"] for item in listed.get("Versions", [])] == ["store/acme2/kept.txt"]
    assert not listed.get("DeleteMarkers")


def test_kept_keys_stay(home: S3Store) -> None:
    for key in (".erasing/erasing.json", ".erasing/lease/1.json", "a.txt"):
        home.write(key, b"x")
    assert purge(home, keep=".erasing/erasing.json") == 2
    assert [info.key for info in home.list()] == [".erasing/erasing.json"]


def test_customer_on_s3_is_erased_and_its_neighbour_stays(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIGNING_KEY, base64.b64encode(bytes(range(32))).decode())
    store = open_store(s3_uri)
    home = "customers/acme/mug/photos-1"
    for key in (f"{home}/run/bundle/a.safetensors", f"{home}/scores/images/a.png"):
        store.write(key, b"mine")
        store.write(key.replace("acme", "acme2"), b"theirs")
    place = store.child("generations/one")
    claim(place, {"model": "models:/acme--mug/1"})
    place.write("images/one.png", b"an image")
    outcome = erase(EraseConfig(customer="acme", store=s3_uri, tracking="none:", wait_s=0))
    assert outcome.receipt is not None
    receipt = verify_receipt(VerifyConfig(receipt=outcome.receipt, customer="acme"))
    assert receipt["objects"]["generated images"]["count"] == 1
    left = [info.key for info in store.list()]
    assert [key for key in left if not key.startswith("receipts/")] == sorted(
        key for key in left if key.startswith("customers/acme2/")
    )
    assert len(left) == 4
