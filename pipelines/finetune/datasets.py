"""The data sets of a finetune: photos to train on, and held-out photos to judge the personal model on."""

from lookalike import config as configs
from lookalike.bundles.manifest import read_preset
from lookalike.bundles.transfer import local_bundle
from lookalike.errors import InputError
from lookalike.storage import Store, list_versions, open_store, read_manifest
from lookalike.storage.claim import claim
from pipelines.curate import CurateConfig, curate
from pipelines.curate.filters.held_out import Role
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.intake import take_in
from pipelines.finetune.parts import Datasets, curation_of
from pipelines.finetune.photos import PhotoSet, check_number
from pipelines.ingest import IngestConfig, ingest
from pipelines.ingest.run import RESULT as INGESTED


def make_datasets(config: FinetuneConfig, home: Store, place: Store, photos: PhotoSet, bundle_uri: str) -> Datasets:
    """Curate the photos, unless that is done: their place, or that of the store, may have changed since.

    Raises InputError: the photos cannot be used, or too few of them to hold one out.
    """
    training, suite = place.child("dataset"), place.child("held-out")
    most = read_preset(local_bundle(bundle_uri)).references.max_references

    def curation(dataset: Store, role: Role) -> CurateConfig:
        return curation_of(config, raw, dataset.uri, most, role)

    raw = open_store(config.photos).uri if photos.raw else _raw_shards(home, place, photos)
    if not list_versions(training):
        if not photos.raw and not open_store(raw).exists(INGESTED):
            given = place.child("given")
            take_in(photos, given, config.subject, config.class_name)
            ingest(IngestConfig(source=given.uri, raw=raw))
        _curate(config, curation(training, "dropped"))
    counts = read_manifest(training)["counts"]
    if photos.raw:
        _check_raw(config, counts)
    claim(place.child("curation"), {"filters": configs.to_dict(curation(training, "dropped").filters)})
    if not config.held_out_photos:
        return Datasets(training.uri, training.uri, "train", 0)
    held_out = int(counts["dropped"].get("held_out", 0))
    if not held_out:
        raise InputError(
            f"{counts['images_kept']} of {counts['images_in']} photos can be used, which is too few to hold one out",
            value=config.photos,
            fix=f"add sharp photos of the subject from other sides; or remove {place.uri} and set --holdout 0, which "
            "judges the model on the photos that it was trained on",
        )
    if not list_versions(suite):
        _curate(config, curation(suite, "targets"))
    return Datasets(training.uri, suite.uri, "validation", held_out)


def _raw_shards(home: Store, place: Store, photos: PhotoSet) -> str:
    """URI of the raw shards; earlier versions kept them beside the place, with the photos' bytes unchanged."""
    earlier = home.child("raw").child(photos.sha256[:12])
    return earlier.uri if earlier.exists(INGESTED) else place.child("raw").uri


def _curate(config: FinetuneConfig, curation: CurateConfig) -> None:
    try:
        curate(curation)
    except InputError as error:
        if not error.what.startswith("no usable pair"):
            raise
        raise InputError(
            error.what,
            value=config.photos,
            fix="replace photos that cannot be decoded, add sharp ones of the subject from other sides, and run "
            "the same command again; or loosen the filters that took most "
            "(such as --filters.skip '[off_subject, blurry]')",
        ) from error


def _check_raw(config: FinetuneConfig, counts: dict[str, int]) -> None:
    """Raise InputError for raw shards of several subjects, or with too few or too many photos."""
    if counts["subjects_in"] != 1:
        raise InputError(
            f"the raw shards hold photos of {counts['subjects_in']} subjects",
            value=config.photos,
            fix="name shards of one subject",
        )
    check_number(counts["images_in"], config.photos)
