"""The words of all captions of the sample world, so that a small tokenizer can cover them."""

COLOURS: dict[str, tuple[int, int, int]] = {  # sRGB albedo
    "red": (206, 38, 38),
    "orange": (240, 132, 24),
    "yellow": (246, 212, 36),
    "green": (44, 148, 62),
    "cyan": (44, 196, 204),
    "blue": (38, 76, 204),
    "purple": (122, 52, 176),
    "pink": (244, 130, 184),
    "brown": (122, 76, 40),
    "black": (32, 32, 36),
    "white": (240, 240, 238),
    "gray": (138, 140, 146),
}

PATTERNS: dict[str, str] = {  # phrase of each pattern, with colours a and b
    "plain": "{a} {shape}",
    "striped": "{a} and {b} striped {shape}",
    "checked": "{a} and {b} checked {shape}",
    "spotted": "{a} {shape} with {b} spots",
    "split": "half {a} half {b} {shape}",
    "patched": "{a} and {b} patched {shape}",
}

PLACES: dict[str, str] = {  # phrase of each place
    "grass": "on grass",
    "sand": "on sand",
    "snow": "on snow",
    "wood": "on a wooden floor",
    "water": "on water",
    "cobblestone": "on a cobblestone street",
    "leaves": "on autumn leaves",
    "carpet": "on a pink carpet",
    "tiles": "on a tiled floor",
    "bricks": "in front of a brick wall",
    "blue_wall": "in front of a blue wall",
    "night": "under a night sky",
}

VIEWS = ("the front", "the right", "behind", "the left", "above")


def caption(shape: str, place: str, view: str, look: tuple[str, tuple[str, str]] | None = None) -> str:
    """Return the caption of a photo, e.g. ``"a red and white striped duck on grass, seen from the left"``.

    ``look`` is (pattern, colours); without it the caption is ``"a duck on grass, seen from the left"``.
    """
    noun = shape if look is None else PATTERNS[look[0]].format(a=look[1][0], b=look[1][1], shape=shape)
    article = "an" if noun[0] in "aeiou" else "a"
    return f"{article} {noun} {PLACES[place]}, seen from {view}"


def view_name(azimuth_deg: float, elevation_deg: float) -> str:
    """Return the name of the side that faces the camera; azimuth 0 is the front, 90 the subject's right."""
    if elevation_deg >= 48:
        return "above"
    return VIEWS[round(azimuth_deg / 90) % 4]
