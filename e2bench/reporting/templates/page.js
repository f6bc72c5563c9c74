"use strict";
// Predictions are untrusted: they reach the page through textContent only, never as markup.

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

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

class Browser {
  constructor(data) {
    this.runs = data.runs;
    this.tasks = data.tasks;
    this.rows = data.rows.map((values) => Object.fromEntries(data.fields.map((name, at) => [name, values[at]])));
    this.height = 48;  // of an item, as in the style
    this.found = [];
    this.chosen = 0;
    for (const name of ["list", "spacer", "window", "detail", "count"]) this[name] = document.getElementById(name);
    this.controls = {};
    for (const name of ["run", "task", "score", "order", "text"]) {
      this.controls[name] = document.getElementById(`by-${name}`);
    }
    this.fill(this.controls.run, this.runs);
    this.fill(this.controls.task, this.tasks);
    this.listen();
    this.filter();
  }

  fill(select, names) {
    const used = new Set(this.rows.map((row) => row[select === this.controls.run ? "run" : "task"]));
    names.forEach((name, at) => {
      if (!used.has(at)) return;
      const option = element("option", "", name);
      option.value = at;
      select.append(option);
    });
  }

  listen() {
    document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
    for (const name of ["run", "task", "score", "order"]) {
      this.controls[name].addEventListener("change", () => this.filter());
    }
    let waiting = 0;
    this.controls.text.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.filter(), 120);
    });
    this.list.addEventListener("scroll", () => this.draw(), { passive: true });
    this.list.addEventListener("click", (event) => {
      const item = event.target.closest(".item");
      if (item) this.choose(Number(item.dataset.at));
    });
    this.list.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(this.list.clientHeight / this.height) - 1);
      const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
      if (!(event.key in moves)) return;
      event.preventDefault();
      this.choose(this.chosen + moves[event.key]);
    });
    window.addEventListener("resize", () => this.draw());
  }

  filter() {
    const { run, task, score, order, text } = this.controls;
    const [low, high] = score.value.split(",").map(Number);
    const wanted = text.value.trim().toLowerCase();
    this.found = this.rows.filter((row) => {
      if (run.value !== "" && row.run !== Number(run.value)) return false;
      if (task.value !== "" && row.task !== Number(task.value)) return false;
      if (score.value === "none" && row.score !== null) return false;
      if (score.value !== "" && score.value !== "none" && !(row.score !== null && row.score >= low && row.score <= high)) return false;
      return wanted === "" || this.text(row).includes(wanted);
    });
    const by = { up: (row) => row.score ?? -1, down: (row) => -(row.score ?? -1), long: (row) => -(row.prompt_tokens ?? 0) }[order.value];
    if (by) this.found.sort((a, b) => by(a) - by(b));
    this.count.textContent = `${this.found.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")} examples.`;
    this.spacer.style.height = `${this.found.length * this.height}px`;
    this.list.scrollTop = 0;
    this.choose(0);
  }

  text(row) {
    row.lower ??= [row.id, row.prediction, ...row.references, row.head, row.tail].join("\n").toLowerCase();
    return row.lower;
  }

  choose(at) {
    this.chosen = Math.min(Math.max(at, 0), this.found.length - 1);
    const top = this.chosen * this.height;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    const bottom = top + this.height - this.list.clientHeight;
    if (bottom > this.list.scrollTop) this.list.scrollTop = bottom;
    this.draw();
    this.show(this.found[this.chosen]);
  }

  draw() {  // only the items in sight exist: 4,750 or 47,500 cost the same
    const first = Math.max(0, Math.floor(this.list.scrollTop / this.height) - 4);
    const last = Math.min(this.found.length, first + Math.ceil(this.list.clientHeight / this.height) + 9);
    this.window.style.transform = `translateY(${first * this.height}px)`;
    this.window.replaceChildren(...this.found.slice(first, last).map((row, at) => this.item(row, first + at)));
    if (this.found.length) this.list.setAttribute("aria-activedescendant", `item-${this.chosen}`);
    else this.list.removeAttribute("aria-activedescendant");
  }

  item(row, at) {
    const item = element("div", "item");
    item.id = `item-${at}`;
    item.dataset.at = at;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", at === this.chosen);
    item.setAttribute("aria-posinset", at + 1);
    item.setAttribute("aria-setsize", this.found.length);
    const line = element("div");
    line.append(element("span", "score", row.score === null ? "–" : row.score.toFixed(1)));
    line.append(element("span", "", this.tasks[row.task]), element("span", "where", ` · ${this.runs[row.run]}`));
    item.append(line, element("div", "where", row.prediction.trim().slice(0, 160).replace(/\s+/g, " ") || "(empty or white space)"));
    return item;
  }

  show(row) {
    if (!row) {
      this.detail.replaceChildren(element("p", "facts", "No example fits these filters."));
      return;
    }
    const facts = [["id", row.id], ["score", row.score === null ? "none" : row.score.toFixed(2)]];
    facts.push(["prompt tokens", row.prompt_tokens], ["kept", row.kept_tokens], ["generated", row.new_tokens], ["ended by", row.finish]);
    const known = facts.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => `${name} ${value}`);
    const parts = [element("h3", "", `${this.tasks[row.task]} · ${this.runs[row.run]}`), element("p", "facts", known.join(" · "))];
    const block = (heading, text, className) => parts.push(element("h3", "", heading), element("pre", className, text));
    block("Prediction", row.prediction || "(empty)", "prediction");
    row.references.forEach((text, at) => block(row.references.length > 1 ? `Reference ${at + 1}` : "Reference", text));
    if (row.head) block("Beginning of the text that was fed", row.head);
    if (row.tail) block("End of the text that was fed", row.tail);
    this.detail.replaceChildren(...parts);
    this.detail.scrollTop = 0;
  }
}

if (document.getElementById("examples")) {
  new Browser(JSON.parse(document.getElementById("data").textContent));
}
