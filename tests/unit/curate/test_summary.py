"""Summaries of partitions add up to that of the whole."""

from lookalike.documents import parse_record, render_json
from pipelines.curate.summary import CAPTIONS_KEPT, Summary


def test_kept_captions_do_not_depend_on_the_partitions() -> None:
    captions = {f"{number:04d}": f"a photo of thing {number}" for number in range(3 * CAPTIONS_KEPT)}
    parts = [Summary(), Summary(), Summary()]
    for number, part in enumerate(parts):
        part.add_captions(dict(list(captions.items())[number::3]))
    whole = Summary()
    for part in reversed(parts):
        whole.add(parse_record(Summary, render_json(vars(part)), "summary.json"))
    assert whole.captions == dict(list(captions.items())[:CAPTIONS_KEPT])
