"use strict";
// Whatever comes from runs is untrusted: it reaches the page through textContent only, never as markup.

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  const order = next[heads[column].getAttribute("aria-sort") || "none"];
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  if (order !== "none") heads[column].setAttribute("aria-sort", order);
  const body = table.tBodies[0];
  const rows = [...body.rows];
  rows.forEach((row, at) => { row.dataset.at ??= at; });
  const sign = order === "descending" ? -1 : 1;
  const key = (row) => {
    const cell = row.cells[column];
    return cell.dataset.value !== undefined ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  rows.sort((a, b) => {
    if (order === "none") return a.dataset.at - b.dataset.at;
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // empty cells stay last in both directions
    if (typeof x === "number" && typeof y === "number") return sign * (x - y);
    return sign * String(x).localeCompare(String(y), "en", { numeric: true });
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => sortBy(table, column));
  });
}

for (const input of document.querySelectorAll("[data-rows-of]")) {
  const rows = [...document.getElementById(input.dataset.rowsOf).tBodies[0].rows];
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    input.nextElementSibling.textContent = shown === rows.length ? "" : `${shown} of ${rows.length}`;
  });
}

const contents = document.getElementById("contents");
const isWide = window.matchMedia("(min-width: 1180px)");
const fold = () => { contents.open = isWide.matches; };
isWide.addEventListener("change", fold);
fold();
contents.addEventListener("click", (event) => { if (event.target.closest("a")) fold(); });

function reveal() {  // a link into something folded unfolds it
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
}
window.addEventListener("hashchange", reveal);
reveal();

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Files beside the page are scripts that call this function: a page that was opened from a disk may not fetch.
const KEPT = 80;  // files of texts that stay in memory
const loaded = new Map();
const waiting = new Map();

function e2benchLoad(key, value) {
  const asked = waiting.get(String(key));
  if (!asked) return;
  waiting.delete(String(key));
  asked.give(value);
}

function load(key, address = `samples/${key}.js`) {
  key = String(key);
  if (Object.hasOwn(page.files, key)) return page.files[key];  // a small report holds its samples itself
  if (loaded.has(key)) return loaded.get(key);
  const made = new Promise((give, fail) => {
    const script = document.createElement("script");
    const lost = () => { waiting.delete(key); loaded.delete(key); fail(new Error(`${address} cannot be read`)); };
    waiting.set(key, { give });
    script.onerror = lost;
    script.onload = () => { script.remove(); if (waiting.has(key)) lost(); };
    script.src = address;
    document.head.append(script);
  });
  loaded.set(key, made);
  if (loaded.size > KEPT) loaded.delete(loaded.keys().next().value);
  return made;
}

const page = JSON.parse(document.getElementById("data").textContent);

if (page.live) {  // `e2bench view`: each state of the runs has an address of its own
  const here = location.pathname.split("/")[1];
  const place = sessionStorage.getItem("place");
  if (place) window.scrollTo(0, Number(place));
  sessionStorage.removeItem("place");
  setInterval(async () => {
    loaded.delete("version");
    const live = document.getElementById("live");
    try {
      const version = await load("version", `/version.js?${Date.now()}`);
      live.textContent = "follows the runs";
      if (version === here) return;
      sessionStorage.setItem("place", window.scrollY);
      location.replace(`/${encodeURIComponent(version)}/index.html${location.hash}`);
    } catch {
      live.textContent = "e2bench view has ended: this is its last state";
    }
  }, 3000);
}
