"""The result of an earlier finetune of the same photos: its place, and the checks before it is returned."""

from typing import Any

from lookalike import config as configs
from lookalike.bundles.manifest import MANIFEST
from lookalike.errors import InputError
from lookalike.registry.versions import identify
from lookalike.storage import Store, open_store, read_object
from lookalike.storage.claim import read_claim
from lookalike.storage.results import AGAIN, Kinds, read_result
from pipelines.finetune.config import FinetuneConfig

RESULT = "result.json"
_RESULT: Kinds = {
    **{"customer": str, "subject": str, "model": str, "version": int, "promoted": bool},
    **{"bundle_uri": str, "bundle_sha256": str, "scores": str},
}


def earlier_result(config: FinetuneConfig, name: str, place: Store, fingerprint: str) -> dict[str, Any]:
    """The content of ``result.json``, with the places of the bundle and the scores as they are now.

    Raises InputError for the result of another run or customer, or one that is not of the bundle that lies here.
    """
    result = read_result(place, RESULT, fingerprint, _RESULT)
    bundle, where = place.child("run").child("bundle"), place.uri_of(RESULT)
    if result is None or bundle.exists(MANIFEST):  # without a seal, as those of before: the bundle has to be here
        result = result or read_object(place, RESULT)
        if (found := identify(bundle.uri)) != result["bundle_sha256"]:
            what = f"the result is of the bundle {result['bundle_sha256'][:12]}, and here is {found[:12]}"
            raise InputError(what, value=where, fix=AGAIN)
    if (result["customer"], result["subject"], result["model"]) != (config.customer, config.subject, name):
        raise InputError(f"the result is of {result['model']!r:.80}, not of {name}", value=where, fix=AGAIN)
    return {**result, "bundle_uri": bundle.uri, "scores": place.child("scores").uri}


def made_before(config: FinetuneConfig, home: Store) -> bool:
    """Whether the subject's prefix holds a finished finetune of these photos by an earlier version of this software."""
    if not home.exists(RESULT) or read_claim(home) is None:
        return False
    raw = read_claim(home.child("raw"))
    listing = [[info.key, info.size] for info in open_store(config.photos).list()]
    return raw is None or raw["identity"].get("source_identity") == configs.fingerprint(listing)
