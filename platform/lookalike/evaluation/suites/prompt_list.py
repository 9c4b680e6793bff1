"""A list of prompts with references, of one subject or of several that an image should show together.

``suite.yaml`` (or ``.yml``, ``.json``) lies in a folder with a folder of photos for each subject::

    classes: {rex: dog}                     # optional
    prompts:
    - prompt: a cat beside a dog on the beach
      references: [tom/00.jpg, rex/01.jpg]  # keys below the list's folder; the last folder names the subject
      id: beach                             # optional, like plain_prompt and prompt_kind

A list alone, with ``image_paths`` in place of ``references``, is read too: published lists of multi-subject prompts for
DreamBench's photos have this form (UNO, Wu et al. 2025).
"""

from collections.abc import Mapping
from typing import Any, get_args

import yaml

from lookalike.data.text import normal
from lookalike.documents import decoding, parse_json
from lookalike.evaluation.suites.folder import MOST_PROMPTS, Folder, by_folder, is_name
from lookalike.evaluation.suites.samples import Contents, Photo, Sample
from lookalike.evaluation.suites.templates import PromptKind

NAMES = ("suite.yaml", "suite.yml", "suite.json")
_FIX = "see the docstring of lookalike/evaluation/suites/prompt_list.py for the format"
_FIELDS = {"prompt", "references", "image_paths", "id", "index", "plain_prompt", "prompt_kind"}


def marker(folder: Folder) -> str | None:
    """Return the key of the list if the folder is such a suite."""
    return next((name for name in NAMES if name in folder.texts), None)


def read(folder: Folder, marked: str) -> Contents:
    """Read the list at the key ``marked``. Raises InputError that names the list and its first wrong entry."""
    document = _parse(folder, marked)
    entries = document.get("prompts") if isinstance(document, dict) else document
    classes = document.get("classes") or {} if isinstance(document, dict) else {}
    if not isinstance(classes, dict) or not all(isinstance(item, str) for pair in classes.items() for item in pair):
        raise folder.error("classes is not a mapping from subjects to classes", marked, _FIX)
    if not isinstance(entries, list) or not entries:
        raise folder.error("it has no prompts", marked, _FIX)
    if len(entries) > MOST_PROMPTS:
        raise folder.error(f"it has {len(entries)} prompts, more than {MOST_PROMPTS}", marked, "split the list")
    spelled = {normal(key): key for key in folder.photos}  # file systems write accents in two ways
    samples = [_sample(folder, marked, number, entry, classes, spelled) for number, entry in enumerate(entries)]
    repeated = _repeated([sample.sample_id for sample in samples])
    if repeated is not None:
        raise folder.error(f"two prompts have the id {repeated!r}", marked, "give each its own id")
    return Contents(samples, _photos(folder, marked, samples))


def _photos(folder: Folder, key: str, samples: list[Sample]) -> dict[str, tuple[Photo, ...]]:
    """The photos of each subject: those in its folder, or a reference that lies in none."""
    in_folder = by_folder(folder.photos.items())
    groups: dict[str, tuple[Photo, ...]] = {}
    homes: dict[str, str] = {}
    for reference in (photo for sample in samples for photo in sample.references):
        subject, home = subject_of(reference.key), reference.key.rpartition("/")[0]
        if homes.setdefault(subject, home) != home:
            what = f"the subject {subject!r} has photos in {homes[subject]!r} and in {home!r}"
            raise folder.error(what, key, "give folders of different subjects different names")
        groups[subject] = in_folder[home] if home else (reference,)
    return groups


def _parse(folder: Folder, key: str) -> Any:
    text, where = folder.read(key), folder.where(key)
    if key.endswith(".json"):
        return parse_json(text, where, fix=_FIX)
    with decoding("valid YAML", where, fix=_FIX):
        return yaml.safe_load(text)


def _sample(
    folder: Folder, key: str, number: int, entry: Any, classes: Mapping[str, str], spelled: Mapping[str, str]
) -> Sample:
    def wrong(what: str) -> Exception:
        return folder.error(f"prompt {number}: {what}", key, _FIX)

    if not isinstance(entry, dict):
        raise wrong("it is not a mapping")
    if unknown := sorted(str(name) for name in entry.keys() - _FIELDS):
        raise wrong(f"it has an unknown field {unknown[0]!r}")
    prompt, plain, kind = entry.get("prompt"), entry.get("plain_prompt", ""), entry.get("prompt_kind", "")
    if not isinstance(prompt, str) or not prompt.strip():
        raise wrong("it has no prompt")
    if not isinstance(plain, str):
        raise wrong("plain_prompt is not text")
    if kind not in ("", *get_args(PromptKind)):
        raise wrong(f"prompt_kind is none of {', '.join(get_args(PromptKind))}")
    sample_id = str(entry.get("id", f"{number:05d}"))
    if not is_name(sample_id):
        raise wrong("its id cannot be a file's name")
    paths = entry.get("references", entry.get("image_paths"))
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise wrong("references is not a list of keys")
    keys = [spelled.get(normal(path.removeprefix("./"))) for path in paths]
    if None in keys:
        raise wrong(f"its reference {paths[keys.index(None)]!r} is not a photo of the suite")
    subjects = [subject_of(found) for found in keys if found is not None]
    if bad := next((name for name in subjects if not is_name(name)), None):
        raise wrong(f"{bad!r} cannot be a subject's name")
    names = tuple(dict.fromkeys(subjects))
    return Sample(
        sample_id,
        "+".join(sorted(names)),
        " and ".join(classes.get(name, "") for name in names) if all(classes.get(name) for name in names) else "",
        prompt.strip(),
        tuple(folder.photos[found] for found in keys if found is not None),
        plain_prompt=plain.strip(),
        prompt_kind=kind,
        subjects=names,
    )


def subject_of(key: str) -> str:
    """Return the subject that a photo's key names: its last folder, or the file's name without one."""
    folder, _, name = key.rpartition("/")
    return folder.rpartition("/")[2] or name.rpartition(".")[0] or name


def _repeated(names: list[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
