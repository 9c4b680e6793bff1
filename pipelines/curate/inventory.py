"""The reasons for which objects of the raw prefix and members of its tars are passed over."""

from collections.abc import Mapping
from typing import Any

REASONS = {
    # of objects
    "record_of_ingest": "Records that jobs/ingest.py writes beside its shards",
    "not_a_shard": "Files that are not a .tar (.tar.gz, .bz2, .xz, .zst and .lz4 are read too)",
    "unsupported_archive": "Archives of another kind, such as .zip: unpack them and write the photos into a .tar",
    "name_not_utf8": "Files whose name is not UTF-8, which neither S3 nor a table can hold: rename them",
    "folder_marker": "Empty objects that stand for a folder",
    "link_outside": "Links that lead out of the prefix, or out of their tar: add their targets to --raw, or copy them",
    "dangling_link": "Links whose target does not exist",
    "link_loop": "Links that lead back to themselves",
    "too_many_links": "Linked folders beyond the maximum number",
    "unreadable": "Folders and files that this job may not read, or that the file system cannot read",
    "special_file": "Devices, sockets and pipes",
    "half_written": "Files of an interrupted write",
    "empty_folder": "Folders without a file",
    # of members
    "folder": "Folders in a tar; their members are counted separately",
    "link_to_nothing": "Links to a member that their tar does not have",
    "link_to_folder": "Links to a folder of the tar; its members are counted separately",
    "repeated_link": "Links that repeat a member under its own name",
    "sparse_file": "Sparse files: write them with tar without --sparse",
    "webdataset_meta": "Names in double underscores, which WebDataset reserves",
    "hidden_file": "Names that begin with a dot, such as those that macOS adds",
    "no_extension": "Names without a dot, which belong to no sample",
    "second_image": "Further images of a sample, of which the first is used",
    "not_read": "Members of a sample that curation does not use",
}


def lines(passed_over: Mapping[str, Any]) -> list[str]:
    """Return a line of a job's output for the objects, and one for the members, that were passed over, if any.

    ``passed_over`` is that of the manifest: ``objects`` and ``members``, each as
    :meth:`lookalike.data.passed_over.PassedOver.to_json` returns it.
    """
    shown = []
    for unit in ("objects", "members"):
        tally = passed_over[unit]
        reasons = [
            f"{reason} {each['count']} (such as {each['examples'][0]!r})" for reason, each in tally["reasons"].items()
        ]
        if reasons:
            count = tally["found"] - tally["read"]
            shown.append(f"passed over: {count} of {tally['found']} {unit}: {', '.join(reasons)}")
    return shown
