"""The grid of a comparison: one row a case, the photos first, one column a model."""

from collections.abc import Sequence

from lookalike.data.images import decode
from lookalike.errors import InputError
from lookalike.evaluation.comparison import Evaluated
from lookalike.evaluation.scores import EXAMPLES
from lookalike.report.examples import Example, Examples, pixels_of
from lookalike.report.grid import GridRow, draw_grid, encode_grid
from lookalike.storage import Store

_ROWS = 8


def draw_examples(
    evaluations: Sequence[Evaluated], stores: Sequence[Store], against: int
) -> tuple[bytes | None, list[str]]:
    """Draw the cases that all evaluations show, as a PNG (None without any), and say what is not shown and why.

    Photos and order are those of the evaluation at the index ``against``. An image that is missing or damaged leaves
    its cell empty.
    """
    shown = [_examples(store) for store in stores]
    without = [each.name for each, examples in zip(evaluations, shown, strict=True) if not examples]
    if without:
        return None, [f"No images are shown: {', '.join(without)} has no {EXAMPLES}; evaluate again to show them."]
    cases = [example for example in shown[against].values() if all(example.case in other for other in shown)]
    photo = "real photo"
    while photo in {each.name for each in evaluations}:  # a column's title is its key
        photo += " "
    rows, missing, where = [], [], stores[against].uri_of(EXAMPLES)
    for example in cases[:_ROWS]:
        images = {photo: pixels_of(example.photo, where)} if example.photo else {}
        for each, store, examples in zip(evaluations, stores, shown, strict=True):
            key = examples[example.case].image
            try:
                images[each.name] = decode(store.read(key))
            except InputError as error:
                missing.append(f"The image of {each.name} for {example.case} is not shown: {error.what}.")
        references = [pixels_of(reference, where) for reference in example.references]
        rows.append(GridRow(references, example.prompt, images, note=example.subject))
    if not rows:
        return None, ["No images are shown: the evaluations share no case among their examples."]
    columns = [photo] if any(example.photo for example in cases[:_ROWS]) else []
    return encode_grid(draw_grid(rows, [*columns, *(each.name for each in evaluations)])), missing


def _examples(store: Store) -> dict[str, Example]:
    """The examples of an evaluation by case; empty if it has none, as those of earlier versions of this software."""
    if not store.exists(EXAMPLES):
        return {}
    document = Examples.from_json(store.read(EXAMPLES), store.uri_of(EXAMPLES))
    return {example.case: example for example in document.examples}
