"""The preference page in a real browser: keys, touch, reload, export, and the way back to results."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.preference import MakeConfig, ReadConfig, make, read
from pipelines.preference.choices import parse_export
from pipelines.preference.config import QUESTIONS
from pipelines.preference.pairs import Key, read_key
from tests.browser import CHROMIUM, Tab, chromium
from tests.judged import write_dataset, write_evaluation

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

_PAIRS = 10


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with one criterion; beside it, in ``two``, one with two."""
    folder = tmp_path_factory.mktemp("study")
    suite = write_dataset(folder / "suite")
    models = {name: str(write_evaluation(folder / name, suite, q)) for name, q in (("a", 0.95), ("b", 0.3))}
    make(MakeConfig(**models, out=str(folder / "people"), max_pairs=_PAIRS, checks=3, repeats=2))
    two = ["identity", "prompt"]
    make(MakeConfig(**models, out=str(folder / "two"), max_pairs=2, checks=0, repeats=0, criteria=two))
    return folder / "people"


@pytest.fixture
def key(page: Path) -> Key:
    return read_key(str(page))


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with chromium(tmp_path) as tab:
        yield tab
        messages = [event for event in tab.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
        assert not messages  # no error, and nothing was refused by the policy
        requests = [
            event["params"]["request"]["url"]
            for event in tab.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        assert {url.partition(":")[0] for url in requests} <= {"file", "data", "blob"}


def _begin(tab: Tab, page: Path, name: str) -> None:
    tab.open((page / "preference.html").as_uri())
    tab.value("document.getElementById('judge').value = ''; document.getElementById('judge').focus()")
    tab.type(name)
    tab.press("Enter")


def _shown(tab: Tab, number: int) -> None:
    tab.wait(f"!document.getElementById('work').hidden && document.body.dataset.shown === '{number}'")


def _good_key(tab: Tab, key: Key) -> str:
    """The key for the better image, found by the pixels that are shown: they are those of the key's better one."""
    left = tab.value("document.querySelector('.stage [data-side=a]').dataset.choice")
    images = tab.value(
        "(() => { const d = JSON.parse(document.getElementById('data').textContent);"
        " const at = i => d.images.indexOf(document.getElementById(i).src); return [at('image-a'), at('image-b')]; })()"
    )
    data = json.loads(tab.value("document.getElementById('data').textContent"))
    prompt = tab.value("document.getElementById('prompt').textContent")
    shown = images if left == "first" else images[::-1]
    matching = [p for p in data["pairs"] if p["images"] == shown and p["prompt"] == prompt]
    pair = key.pairs[matching[0]["id"]]
    better = "first" if pair.first in ("a", "subject") else "second"
    return "ArrowLeft" if left == better else "ArrowRight"


def _downloaded(folder: Path, tab: Tab) -> bytes:
    tab.click("#download")
    tab.wait("document.getElementById('said').textContent.startsWith('Saved')")
    for _ in range(200):
        files = list((folder / "downloads").glob("*.json"))
        if files:
            return files[0].read_bytes()
        tab.value("new Promise(done => setTimeout(done, 50))")
    raise AssertionError("nothing was downloaded")


def test_all_pairs_by_keys_with_a_reload_and_back(page: Path, key: Key, tab: Tab, tmp_path: Path) -> None:
    total = len(key.pairs)
    _begin(tab, page, "Anna")
    for number in range(6):
        _shown(tab, number)
        tab.press(_good_key(tab, key))
    _shown(tab, 6)
    tab.call("Page.reload")  # in the middle
    tab.wait("document.body?.dataset.loaded === 'true' && document.body.dataset.shown === undefined")
    assert tab.value("document.getElementById('judge').value") == "anna"
    tab.click("#begin")
    _shown(tab, 6)
    tab.press("Backspace")
    _shown(tab, 5)
    assert tab.value("document.querySelectorAll('.stage .chosen').length") == 1
    tab.press("ArrowDown")  # a tie instead
    for number in range(6, total):
        _shown(tab, number)
        tab.press(_good_key(tab, key))
    tab.wait("!document.getElementById('end').hidden")
    assert "Thank you" in tab.value("document.getElementById('end-title').textContent")
    data = _downloaded(tmp_path, tab)
    assert tab.value("document.getElementById('text').value") == data.decode()
    export = parse_export(data, "file:///anna.json", key)
    assert {row.pair for row in export.choices} == set(key.pairs)
    assert [row.choice for row in export.choices].count("tie") == 1
    assert export.choices[5].choice == "tie"
    assert {row.left for row in export.choices} == {"first", "second"}
    order = [row.pair for row in export.choices]
    for pair in key.pairs.values():
        if pair.repeats:
            assert order.index(pair.repeats) < order.index(pair.id)
            sides = {row.pair: row.left for row in export.choices}
            assert sides[pair.repeats] != sides[pair.id]
    (tmp_path / "anna.json").write_bytes(data)
    files = [str(tmp_path / "anna.json")]
    result = read(ReadConfig(pairs=str(page), choices=files, out=str(tmp_path / "out"), min_right=0.6))
    (rate,) = result["criteria"]["overall"]["win_rates"]
    assert rate["wins"] + rate["ties"] == _PAIRS
    assert rate["losses"] == 0


def test_order_differs_between_judges_and_each_has_choices_of_its_own(page: Path, key: Key, tab: Tab) -> None:
    orders: list[Any] = []
    for name in ("anna", "ben", "anna"):
        _begin(tab, page, name)
        _shown(tab, 0 if len(orders) < 2 else 3)
        if len(orders) < 2:
            for number in range(3):
                _shown(tab, number)
                tab.press("ArrowLeft")
            _shown(tab, 3)
        tab.click("#save")
        text = json.loads(tab.value("document.getElementById('text').value"))
        orders.append([(row["pair"], row["left"]) for row in text["choices"]])
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]  # kept beside those of another judge


def test_touch_on_a_phone_without_scrolling(page: Path, key: Key, tab: Tab) -> None:
    tab.size(390, 844, phone=True)
    _begin(tab, page, "7")
    _shown(tab, 0)
    assert tab.value("document.documentElement.scrollWidth") <= 390
    assert tab.value("document.documentElement.scrollHeight") <= 844
    small = "[...document.querySelectorAll('.keys button')].filter(b => b.getBoundingClientRect().height < 44).length"
    assert tab.value(small) == 0
    for number, selector in enumerate((".stage [data-side=b]", ".keys [data-side=a]", ".keys [data-side=tie]")):
        _shown(tab, number)
        tab.tap(selector)
    _shown(tab, 3)
    tab.tap("#back")
    _shown(tab, 2)
    tab.tap("#save")
    tab.wait("!document.getElementById('end').hidden")
    rows = json.loads(tab.value("document.getElementById('text').value"))["choices"]
    other = {"first": "second", "second": "first"}
    assert [row["choice"] for row in rows] == [other[rows[0]["left"]], rows[1]["left"], "tie"]


def test_prompt_with_markup_is_shown_as_text(page: Path, tab: Tab) -> None:
    _begin(tab, page, "anna")
    _shown(tab, 0)
    assert "<img src=x onerror=" in tab.value("document.getElementById('prompt').textContent")
    assert tab.value("document.title") == "Which image is better?"
    assert tab.value("document.querySelectorAll('img').length") == 4  # two references, two images
    assert tab.value("[...document.images].every(image => image.naturalWidth > 0)")


@pytest.mark.parametrize("name", ["", "   ", "../x", "anna smith", "é", "x" * 33])
def test_wrong_judge_is_asked_again(page: Path, tab: Tab, name: str) -> None:
    _begin(tab, page, name)
    assert tab.value("document.getElementById('problem').textContent").startswith("Use 1 to 32")
    assert tab.value("document.getElementById('work').hidden")


def test_each_pair_is_asked_about_by_each_criterion(page: Path, tab: Tab) -> None:
    two = page.parent / "two"
    _begin(tab, two, "anna")
    asked = []
    for number in range(4):
        _shown(tab, number)
        asked.append(
            (
                tab.value("document.getElementById('image-a').src"),
                tab.value("document.getElementById('question').textContent"),
            )
        )
        tab.press("ArrowLeft")
    tab.wait("!document.getElementById('end').hidden")
    assert [question for _, question in asked] == [QUESTIONS["identity"], QUESTIONS["prompt"]] * 2
    assert asked[0][0] == asked[1][0] != asked[2][0] == asked[3][0]
    export = parse_export(
        tab.value("document.getElementById('text').value").encode(), "file:///anna.json", read_key(str(two))
    )
    assert [row.criterion for row in export.choices] == ["identity", "prompt"] * 2


def test_held_key_counts_once(page: Path, tab: Tab) -> None:
    _begin(tab, page, "anna")
    _shown(tab, 0)
    key = {"key": "ArrowLeft", "code": "ArrowLeft", "windowsVirtualKeyCode": 37}
    for number in range(5):
        tab.call("Input.dispatchKeyEvent", type="rawKeyDown", autoRepeat=number > 0, **key)
    _shown(tab, 1)
    tab.call("Input.dispatchKeyEvent", type="rawKeyDown", autoRepeat=True, **key)
    assert tab.value("document.getElementById('count').textContent").startswith("2 of")


def test_without_storage_the_judge_is_warned_and_can_export(page: Path, key: Key, tab: Tab) -> None:
    blocked = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('blocked'); }})"
    tab.call("Page.addScriptToEvaluateOnNewDocument", source=blocked)
    _begin(tab, page, "anna")
    assert not tab.value("document.getElementById('volatile').hidden")
    _shown(tab, 0)
    tab.press("ArrowRight")
    _shown(tab, 1)
    tab.click("#save")
    assert not tab.value("document.getElementById('blocked').hidden")
    text = tab.value("document.getElementById('text').value")
    assert len(parse_export(text.encode(), "file:///anna.json", key).choices) == 1
    tab.click("#copy")
    tab.wait("document.getElementById('said').textContent !== ''")
