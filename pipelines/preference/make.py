"""Make a page of blind pairs, and its key."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from lookalike.config import fingerprint
from lookalike.data.images import encode_jpeg, encode_png
from lookalike.errors import ConfigError, InputError, describe
from lookalike.evaluation.calibration import same_judge
from lookalike.report.page import data_uri
from lookalike.report.preference import Criterion, PagePair, PreferencePage, render_preference
from lookalike.storage import open_store
from lookalike.storage.claim import AGAIN, read_result, run_once, write_result
from pipelines.preference.cases import Evaluated, Shown, read_evaluation, shared_cases, shown_cases
from pipelines.preference.config import QUESTIONS, MakeConfig
from pipelines.preference.pairs import PAGE, PAIRS, Pair, choose_pairs, coin

log = logging.getLogger(__name__)

_SMALL = 128  # pixels a side: up to it an image is stored without loss
_QUALITY = 90  # of JPEG
_SPARE = 8  # cases more than attention checks, since some may be unreadable
_REFERENCES = 4  # photos of the subject that fit beside the question
_PROMPT = 2_000  # characters of a prompt that are shown


def make(config: MakeConfig) -> dict[str, Any]:
    """Write ``preference.html`` and, last, ``pairs.json``; returns the latter's content.

    The same configuration and inputs give the same bytes.

    Raises:
        InputError: an evaluation is missing or damaged, or they are not comparable.
        ConfigError: the page would be larger than ``max_mib``; nothing is written.
        ConflictError: ``config.out`` holds another page.
    """
    evaluations = [read_evaluation(name, uri) for name, uri in config.evaluations.items()]
    store = open_store(config.out)

    def written(run: str) -> dict[str, Any]:
        key = read_result(store, PAIRS, run, {"pairs": list[Pair], "mib": float, "page_sha256": str})[0]
        if not store.exists(PAGE) or hashlib.sha256(store.read(PAGE)).hexdigest() != key["page_sha256"]:
            what = f"{PAGE} is missing or was changed after it was made"
            raise InputError(what, value=store.uri_of(PAIRS), fix=AGAIN)
        return key

    def work(run: str) -> dict[str, Any]:
        builder = _Builder(config, evaluations)
        page, key = builder.build()
        size = len(builder.text)
        log.info("the page has %d pairs and %.1f MiB", len(page.pairs), size / 2**20)
        store.write(PAGE, builder.text)
        digest = hashlib.sha256(builder.text).hexdigest()
        write_result(store, PAIRS, {**key, "page_sha256": digest, "mib": round(size / 2**20, 2)}, run)
        return written(run)

    content = {"inputs": {"evaluations": [evaluation.sha256 for evaluation in evaluations]}}
    return run_once(store, PAIRS, config, content=content, earlier=written, work=work)


@dataclass(frozen=True)
class _Row:
    """A pair with what the page shows of it; images by their hash."""

    pair: Pair
    prompt: str
    references: tuple[str, ...]
    images: tuple[str, str]


class _Builder:
    """Chooses pairs, and gathers the images of the page, each once."""

    def __init__(self, config: MakeConfig, evaluations: Sequence[Evaluated]) -> None:
        self._config = config
        self._evaluations = {evaluation.name: evaluation for evaluation in evaluations}
        self._identity = fingerprint([config.seed, *(evaluation.sha256 for evaluation in evaluations)])
        self._images: dict[str, str] = {}  # hash -> data: URI
        self._left = config.max_mib << 20
        self._pairs: list[_Row] = []
        self._values: dict[str, dict[str, dict[str, float]]] = {}  # model -> case -> metric -> value
        self.text = b""

    def build(self) -> tuple[PreferencePage, dict[str, Any]]:
        """The page, whose HTML is ``text`` afterwards, and the content of its key."""
        config, models = self._config, list(self._evaluations)
        subjects, left_out = shared_cases(list(self._evaluations.values()), config.seed)
        chosen = choose_pairs(subjects, models, config.max_pairs, config.seed)
        by_case: dict[str, list[tuple[str, str]]] = {}
        for case, *two in chosen:
            by_case.setdefault(case, []).append((two[0], two[1]))
        for_checks = _one_of_each_subject_first(
            sorted(by_case, key=lambda case: fingerprint([self._identity, "check", case])), subjects
        )[: config.checks + _SPARE]
        self._values = self._values_of(by_case)
        photos: dict[str, Shown] = {}
        for shown in shown_cases(next(iter(self._evaluations.values())), by_case.keys()):
            if isinstance(shown, dict):
                left_out.append(shown)
                continue
            try:
                self._add_models(shown, by_case[shown.case])
            except InputError as error:
                left_out.append({"case": shown.case, "reason": describe(error)[:300]})
            else:
                if shown.case in for_checks:
                    photos[shown.case] = shown
        if not self._pairs:
            raise InputError(
                f"no image can be shown: {left_out[0]['case']}: {left_out[0]['reason']}",
                value=next(iter(self._evaluations.values())).store.uri,
                fix="restore the images and the suite, or evaluate the bundles again",
            )
        self._add_repeats()
        self._add_checks([photos[case] for case in for_checks if case in photos])
        page = self._page()
        self.text = render_preference(page).encode()
        if len(self.text) > config.max_mib << 20:
            raise self._too_large()
        return page, self._key(page, left_out)

    def _values_of(self, cases: Iterable[str]) -> dict[str, dict[str, dict[str, float]]]:
        """Model -> case -> metric -> value; without any metric if the values of two models cannot be compared."""
        first, *others = self._evaluations.values()
        for other in others:
            if reason := same_judge(first.scores, other.scores):
                what = "no metric is compared with people's choices: of %s and %s %s"
                log.warning(what, first.name, other.name, reason)
                return {name: {case: {} for case in cases} for name in self._evaluations}
        return {name: evaluation.values_of(cases) for name, evaluation in self._evaluations.items()}

    def _add_models(self, shown: Shown, pairs: Sequence[tuple[str, str]]) -> None:
        names = sorted({name for two in pairs for name in two})
        read = {name: self._evaluations[name].image(shown.case) for name in names}
        images = {name: self._store(image) for name, image in read.items()}
        references = self._references(shown)
        for two in pairs:
            identity = self._id("models", shown.case, *two)
            first, second = two if coin(identity, "order") else two[::-1]
            ours, theirs = (self._values[name][shown.case] for name in (first, second))
            values = {
                metric: (ours[metric], theirs[metric])
                for metric in sorted(ours.keys() & theirs.keys())
                if np.isfinite([ours[metric], theirs[metric]]).all()
            }
            pair = Pair(identity, "models", shown.case, shown.subject, first, second, values=values)
            self._pairs.append(_Row(pair, shown.prompt, references, (images[first], images[second])))

    def _add_repeats(self) -> None:
        """Show some pairs again. Pairs of identical images are not repeated: a choice between them means nothing."""
        different = [row for row in self._pairs if row.images[0] != row.images[1]]
        different.sort(key=lambda row: fingerprint([self._identity, "repeat", row.pair.id]))
        for row in different[: self._config.repeats]:
            pair = replace(row.pair, id=self._id("repeat", row.pair.id), kind="repeat", repeats=row.pair.id, values={})
            self._pairs.append(replace(row, pair=pair))

    def _add_checks(self, order: Sequence[Shown]) -> None:
        """Add attention checks: a case's photo, and one of another subject, of another class if there is one."""
        photos = [(shown, shown.photo) for shown in order if shown.photo is not None]
        made: set[tuple[str, frozenset[str]]] = set()
        for shown, own in photos:
            identity = self._id("check", shown.case)
            others = [row for row in photos if row[0].subjects.isdisjoint(shown.subjects)]
            if len(made) == self._config.checks:
                break
            if not others or len(shown.subjects) > 1:
                continue
            others.sort(key=lambda row: (row[0].class_name == shown.class_name, fingerprint([identity, row[0].case])))
            names = ("subject", "other") if coin(identity, "order") else ("other", "subject")
            other = others[0][1]
            side = min(max(own.shape[:2]), max(other.shape[:2]))
            first, second = (self._store(_fitted(own if name == "subject" else other, side)) for name in names)
            question = (shown.subject, frozenset([first, second]))
            if first == second or question in made:
                continue
            pair = Pair(identity, "check", shown.case, shown.subject, *names)
            self._pairs.append(_Row(pair, shown.prompt, self._references(shown), (first, second)))
            made.add(question)
        if len(made) < self._config.checks:
            what = "the page has %d attention checks of %d: too few cases or subjects"
            log.warning(what, len(made), self._config.checks)

    def _references(self, shown: Shown) -> tuple[str, ...]:
        return tuple(self._store(photo) for photo in shown.references[:_REFERENCES])

    def _store(self, image: np.ndarray) -> str:
        """Encode an image for the page; returns its hash. Raises ConfigError if the page becomes too large."""
        small = max(image.shape[:2]) <= _SMALL
        data = encode_png(image) if small else encode_jpeg(_fitted(image, self._config.max_side), _QUALITY)
        name = hashlib.sha256(data).hexdigest()
        if name not in self._images:
            self._images[name] = data_uri(data, "image/png" if small else "image/jpeg")
            self._left -= len(self._images[name])
            if self._left < 0:
                raise self._too_large()
        return name

    def _too_large(self) -> ConfigError:
        return ConfigError(
            f"the page would have more than the {self._config.max_mib} MiB that max_mib allows",
            fix="lower --max_pairs or --max_side, or raise --max_mib",
        )

    def _id(self, *identity: str) -> str:
        return fingerprint([self._identity, *identity])[:16]

    def _page(self) -> PreferencePage:
        """The page; its pairs and images are in the order of their hashes, which says nothing about the models."""
        number = {name: index for index, name in enumerate(sorted(self._images))}
        pairs = [
            PagePair(
                id=row.pair.id,
                prompt=row.prompt[:_PROMPT],
                references=tuple(number[name] for name in row.references),
                images=(number[row.images[0]], number[row.images[1]]),
                repeats=row.pair.repeats,
            )
            for row in sorted(self._pairs, key=lambda row: row.pair.id)
        ]
        texts = {**QUESTIONS, **self._config.questions}
        criteria = [Criterion(name, texts[name].strip()) for name in self._config.criteria]
        images = [self._images[name] for name in sorted(self._images)]
        content = [[asdict(row) for row in criteria], [asdict(row) for row in pairs], sorted(self._images)]
        return PreferencePage(fingerprint(content)[:32], criteria, pairs, images)

    def _key(self, page: PreferencePage, left_out: list[dict[str, str]]) -> dict[str, Any]:
        suite = next(iter(self._evaluations.values())).scores.suite
        return {
            "page": page.page,
            "criteria": [criterion.name for criterion in page.criteria],
            "questions": [criterion.question for criterion in page.criteria],
            "suite": asdict(suite),
            "models": {name: _described(evaluation) for name, evaluation in self._evaluations.items()},
            "left_out": left_out,
            "pairs": [asdict(pair) for pair in sorted((row.pair for row in self._pairs), key=lambda pair: pair.id)],
        }


def _described(evaluation: Evaluated) -> Mapping[str, str | None]:
    scores = evaluation.scores
    return {
        "bundle": scores.bundle.uri,
        "bundle_sha256": scores.bundle.sha256,
        "evaluation": evaluation.store.uri,
        "measurements_sha256": evaluation.sha256,
    }


def _one_of_each_subject_first(cases: Sequence[str], subjects: Mapping[str, str]) -> list[str]:
    first = {subjects[case]: case for case in reversed(cases)}
    return sorted(cases, key=lambda case: first[subjects[case]] != case)


def _fitted(image: np.ndarray, side: int) -> np.ndarray:
    """Scale ``image`` down so that its long side has ``side`` pixels; a smaller one is returned unchanged."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3))
