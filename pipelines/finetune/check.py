"""The dry run of a finetune: what its photos are, what is missing, how long it takes and what it costs."""

from typing import Any

from lookalike.errors import ConfigError
from pipelines.finetune.config import CheckConfig
from pipelines.finetune.examine import examine
from pipelines.finetune.photos import open_photos, photo_set
from pipelines.finetune.prices import estimate
from pipelines.finetune.progress import document_of, refuse_groups

_ALONE = "single_photo"
_TRAINABLE = 2  # photos: a target and a reference


def check(config: CheckConfig) -> dict[str, Any]:
    """Examine the photos with the filters of a finetune with these settings; nothing is written but temporary files.

    Returns ``photos`` (one row each), ``usable``, ``missing`` (how many usable photos more are needed), ``skipped``
    (files that are no photos), ``triplets`` to train on, and ``estimate`` (seconds and price; null if the speed of the
    machine is not given). Raw shards that are compressed are not examined.

    Raises InputError: too few or too many photos, formats that are not read, invalid labels, or photos of two subjects.
    """
    photos = photo_set(open_photos(config.photos), config.photos)
    examined = examine(config, photos)
    refuse_groups(config, document_of(examined)["groups"])
    usable = examined.number("train") + examined.number("held out")
    alone = sum(photo.reason == _ALONE for photo in examined.photos)  # it can be used beside another one
    needed = _TRAINABLE + (1 if config.held_out_photos else 0)
    try:
        price: dict[str, Any] | None = estimate(config, config.price)
    except ConfigError:
        if any(value is not None for value in vars(config.price).values()):
            raise
        price = None
    return {
        **document_of(examined),
        "skipped": photos.skipped,
        "usable": usable,
        "needed": needed,
        "missing": max(0, needed - usable - alone),
        "estimate": price,
    }


def table_of(found: dict[str, Any]) -> str:
    """Return the result of :func:`check` as lines of text."""
    width = max(len(photo["name"]) for photo in found["photos"])
    lines = [f"{'photo':{width}}  {'use':8}  {'size':>11}  {'sharp':>7}  {'alike':>5}  reason"]
    for photo in found["photos"]:
        size = f"{photo['width']}x{photo['height']}" if photo["width"] else "-"
        alike = "-" if photo["similarity"] is None else f"{photo['similarity']:.2f}"
        reason = "; ".join(part for part in (photo["reason"], photo["note"]) if part)
        row = f"{photo['name']:{width}}  {photo['use']:8}  {size:>11}  {photo['sharpness']:7.0f}  {alike:>5}  {reason}"
        lines.append(row.rstrip())
    lines += [f"not a photo: {name} ({reason})" for name, reason in sorted(found["skipped"].items())]
    missing = f"; {found['missing']} more are needed" if found["missing"] else ""
    lines.append(f"{found['usable']} of {len(found['photos'])} photos can be used{missing}")
    price = found["estimate"]
    if price is None:
        lines.append("time and price: name a machine, such as --price.table jobs/configs/prices.yaml")
        return "\n".join(lines)
    minutes = f"{price['seconds'] / 60:.1f} minutes"
    training = f"{price['steps']} steps {price['training']} s"
    parts = f"{training}, evaluation {price['evaluation']} s, rest {price['before']} s"
    cost = "" if price["price"] is None else f", {price['price']} {price['currency'] or ''}".rstrip()
    lines.append(f"about {minutes}{cost} ({parts})")
    return "\n".join(lines)
