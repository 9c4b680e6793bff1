"use strict";
(() => {
  const FORMAT = "lookalike-preference-1";
  const PAUSE_MS = 150; // after a new pair appears: the second tap of a double tap is not a choice
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const KEY = `lookalike-preference-${data.page}`;
  const pairs = new Map(data.pairs.map((pair) => [pair.id, pair]));
  let judge = "", items = [], sides = new Map(), choices = new Map(), at = 0, shownAt = 0, ready = false, unsaved = false;

  // Storage that the browser blocks is not an error: the judge is asked to save before leaving.
  const read = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const write = (key, text) => { try { localStorage.setItem(key, text); return true; } catch { return false; } };

  // Random numbers in [0, 1) that depend on text alone: FNV-1a seeds mulberry32.
  function randomOf(text) {
    let state = 0x811c9dc5;
    for (const letter of text) state = Math.imul(state ^ letter.codePointAt(0), 0x01000193);
    return () => {
      state = (state + 0x6d2b79f5) | 0;
      let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
    };
  }

  // Order and sides of this judge. A repeated pair comes after its original, with sides swapped.
  function arrange() {
    const random = randomOf(`${data.page} ${judge}`);
    const order = data.pairs.map((pair) => pair.id);
    sides = new Map(order.map((id) => [id, random() < 0.5 ? "first" : "second"]));
    for (let last = order.length - 1; last > 0; last--) {
      const other = Math.floor(random() * (last + 1));
      [order[last], order[other]] = [order[other], order[last]];
    }
    for (const pair of data.pairs) {
      if (!pair.repeats) continue;
      sides.set(pair.id, sides.get(pair.repeats) === "first" ? "second" : "first");
      const original = order.indexOf(pair.repeats), repeat = order.indexOf(pair.id);
      if (repeat < original) [order[original], order[repeat]] = [order[repeat], order[original]];
    }
    items = order.flatMap((id) => data.criteria.map((criterion) => ({ pair: id, criterion: criterion.name })));
  }

  const nameOf = (item) => `${item.pair} ${item.criterion}`;

  function crc32(text) {
    let crc = -1;
    for (const byte of new TextEncoder().encode(text)) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ((crc ^ -1) >>> 0).toString(16).padStart(8, "0");
  }

  function exported() {
    const rows = items.filter((item) => choices.has(nameOf(item))).map((item) => choices.get(nameOf(item)));
    const checksum = crc32(JSON.stringify([FORMAT, data.page, judge, rows]));
    return JSON.stringify({ format: FORMAT, page: data.page, judge, choices: rows, checksum });
  }

  function restore() {
    choices = new Map();
    try {
      const stored = JSON.parse(read(`${KEY}-${judge}`) || "null");
      for (const row of stored?.page === data.page && stored.judge === judge ? stored.choices : []) {
        if (pairs.has(row.pair)) choices.set(nameOf(row), row);
      }
    } catch { choices = new Map(); }
  }

  function view(name) {
    for (const id of ["start", "work", "end"]) $(id).hidden = id !== name;
    window.scrollTo(0, 0);
  }

  function start() {
    judge = $("judge").value.trim().toLowerCase();
    if (!/^[a-z0-9][a-z0-9_-]{0,31}$/.test(judge)) {
      $("problem").textContent = "Use 1 to 32 letters (a to z), digits, - or _, beginning with a letter or digit.";
      return;
    }
    write(KEY, judge);
    arrange();
    restore();
    const open = items.findIndex((item) => !choices.has(nameOf(item)));
    if (open < 0) finish();
    else show(open);
  }

  async function show(index) {
    at = index;
    ready = false;
    const item = items[at], pair = pairs.get(item.pair), done = choices.get(nameOf(item));
    const left = sides.get(pair.id), order = left === "first" ? pair.images : [...pair.images].reverse();
    $("question").textContent = data.criteria.find((criterion) => criterion.name === item.criterion).question;
    $("prompt").textContent = pair.prompt;
    $("references").replaceChildren(...pair.references.map((number) => {
      const image = new Image();
      image.alt = "reference photo";
      image.src = data.images[number];
      return image;
    }));
    $("image-a").src = data.images[order[0]];
    $("image-b").src = data.images[order[1]];
    for (const [id, chosen] of [["a", left], ["b", left === "first" ? "second" : "first"], ["tie", "tie"]]) {
      for (const button of document.querySelectorAll(`[data-side="${id}"]`)) {
        button.dataset.choice = chosen;
        button.classList.toggle("chosen", done?.choice === chosen);
      }
    }
    $("count").textContent = `${at + 1} of ${items.length}`;
    $("fill").style.width = `${(100 * at) / items.length}%`;
    $("back").disabled = at === 0;
    view("work");
    await Promise.allSettled([$("image-a").decode(), $("image-b").decode()]);
    shownAt = performance.now();
    setTimeout(() => { ready = at === index; document.body.dataset.shown = String(index); }, PAUSE_MS);
  }

  function choose(choice) {
    if (!ready || $("work").hidden) return;
    const item = items[at];
    const ms = Math.min(Math.round(performance.now() - shownAt), 3600000);
    choices.set(nameOf(item), { pair: item.pair, criterion: item.criterion, choice, left: sides.get(item.pair), ms });
    unsaved = !write(`${KEY}-${judge}`, exported());
    if (at + 1 < items.length) show(at + 1);
    else finish();
  }

  function back() {
    if (!$("work").hidden && at > 0) show(at - 1);
  }

  function finish() {
    ready = false;
    const open = items.filter((item) => !choices.has(nameOf(item))).length;
    $("end-title").textContent = open ? "Your choices so far" : "All done. Thank you!";
    $("end-text").textContent = open
      ? `${items.length - open} of ${items.length} are answered. Save them now, or continue.`
      : "Please save the file, and send it to the person who gave you this page.";
    $("continue").textContent = open ? "Continue" : "Look at the last one again";
    $("blocked").hidden = !unsaved;
    $("text").value = exported();
    $("said").textContent = "";
    view("end");
  }

  function download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([exported()], { type: "application/json" }));
    link.download = `choices-${data.page.slice(0, 8)}-${judge}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    unsaved = false;
    $("said").textContent = `Saved as ${link.download}.`;
  }

  async function copy() {
    try {
      await navigator.clipboard.writeText(exported());
    } catch {
      $("text").select();
      if (!document.execCommand("copy")) {
        $("said").textContent = "The browser does not allow it: select the text below and copy it.";
        return;
      }
    }
    unsaved = false;
    $("said").textContent = "Copied. Paste it into a message, whole.";
  }

  const KEYS = { ArrowLeft: "a", ArrowRight: "b", ArrowDown: "tie" };
  document.addEventListener("keydown", (event) => {
    if ($("work").hidden || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Backspace") back();
    else if (event.key in KEYS) choose(document.querySelector(`[data-side="${KEYS[event.key]}"]`).dataset.choice);
    else return;
    event.preventDefault();
  });
  for (const button of document.querySelectorAll("[data-side]")) {
    button.addEventListener("click", () => { button.blur(); choose(button.dataset.choice); });
  }
  $("back").addEventListener("click", () => { $("back").blur(); back(); });
  $("save").addEventListener("click", finish);
  $("continue").addEventListener("click", () => show(Math.min(at, items.length - 1)));
  $("download").addEventListener("click", download);
  $("copy").addEventListener("click", copy);
  $("start").addEventListener("submit", (event) => { event.preventDefault(); start(); });
  window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });

  $("judge").value = read(KEY) || "";
  const keeps = write(`${KEY}-try`, "1");
  try { localStorage.removeItem(`${KEY}-try`); } catch { /* blocked, as said below */ }
  $("volatile").hidden = keeps;
  view("start");
  document.body.dataset.loaded = "true";
})();
