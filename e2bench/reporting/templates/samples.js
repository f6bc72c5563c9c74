// The browser of samples. A line is one answer of one system; `columns` hold the lines of one run in one task.

const [RUN, AT, FILES, SCORE, FINISH, TRUNCATED, PROMPT, KEPT_TOKENS, NEW] = Array(9).keys();
const [PREDICTION, REFERENCES, WHOLE, HEAD, TAIL] = Array(5).keys();
const NAMES = ["run", "task", "score", "input", "length", "finish", "order", "text"];
const ITEM = 48;  // pixels of an item, as in the style
const LINE = 60;  // characters: several references that are no longer stand in one box, a line each

class Samples {
  constructor(runs, index) {
    this.runs = runs;
    this.groups = index.map(([experiment, task, ids, labels, finishes, columns]) => (
      { experiment, task, ids, labels: labels || ids, finishes, columns }
    ));
    this.lines = [];
    for (const group of this.groups) {
      for (const column of group.columns) {
        column[AT].forEach((_, at) => this.lines.push({ group, column, at }));
      }
    }
    this.lines.sort((a, b) => a.column[RUN] - b.column[RUN]);
    this.found = [];
    this.chosen = 0;
    this.search = 0;
    for (const name of ["list", "spacer", "window", "detail", "count"]) this[name] = document.getElementById(name);
    this.controls = Object.fromEntries(NAMES.map((name) => [name, document.getElementById(`by-${name}`)]));
    const used = new Set(this.lines.map((line) => line.column[RUN]));
    this.fill(this.controls.run, this.runs.map(([name, label]) => [name, label]).filter((_, at) => used.has(at)));
    this.fill(this.controls.task, [...new Set(this.groups.map((group) => group.task))].map((task) => [task, task]));
    const finishes = [...new Set(this.groups.flatMap((group) => group.finishes))].filter(Boolean);
    this.fill(this.controls.finish, finishes.map((finish) => [finish, finish]));
    this.listen();
    this.quiet = true;  // scrolling past must not change the address
    this.follow();
  }

  fill(select, options) {
    for (const [value, text] of options) {
      const option = element("option", "", text);
      option.value = value;
      select.append(option);
    }
  }

  listen() {
    document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
    for (const name of NAMES.slice(0, -1)) this.controls[name].addEventListener("change", () => this.filter());
    let waiting = 0;
    this.controls.text.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.filter(), 200);
    });
    this.list.addEventListener("scroll", () => this.draw(), { passive: true });
    this.list.addEventListener("click", (event) => {
      const item = event.target.closest(".item");
      if (item) this.choose(Number(item.dataset.at));
    });
    this.list.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(this.list.clientHeight / ITEM) - 1);
      const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
      if (!(event.key in moves)) return;
      event.preventDefault();
      this.choose(this.chosen + moves[event.key]);
    });
    window.addEventListener("resize", () => this.draw());
    window.addEventListener("hashchange", () => { if (location.hash.startsWith("#samples?")) this.follow(); });
  }

  // permalinks: #samples?run=…&task=…&id=…, and by-NAME for each filter

  follow() {
    const wanted = new URLSearchParams(location.hash.startsWith("#samples?") ? location.hash.slice(9) : "");
    for (const name of NAMES) {
      this.controls[name].value = wanted.get(`by-${name}`) ?? "";
      if (this.controls[name].value === "") this.controls[name].value = "";  // also where there is no such option
    }
    this.filter(wanted);
    if (wanted.size) document.getElementById("samples").scrollIntoView();
  }

  address(line) {
    const link = new URLSearchParams();
    const id = line.group.ids[line.column[AT][line.at]];
    for (const [name, value] of [["run", this.runs[line.column[RUN]][0]], ["task", line.group.task], ["id", id]]) {
      link.set(name, value);
    }
    for (const name of NAMES) if (this.controls[name].value) link.set(`by-${name}`, this.controls[name].value);
    return `#samples?${link}`;
  }

  is(line, wanted) {
    return this.runs[line.column[RUN]][0] === wanted.get("run") && line.group.task === wanted.get("task")
      && line.group.ids[line.column[AT][line.at]] === wanted.get("id");
  }

  // filters

  async filter(wanted = new URLSearchParams()) {
    const mine = ++this.search;
    const value = Object.fromEntries(NAMES.map((name) => [name, this.controls[name].value]));
    const range = (text) => text.split(",").map(Number);
    const [low, high] = range(value.score);
    const [shortest, longest] = range(value.length);
    const fits = ({ group, column, at }) => {
      const score = column[SCORE][at];
      if (value.run !== "" && this.runs[column[RUN]][0] !== value.run) return false;
      if (value.task !== "" && group.task !== value.task) return false;
      if (value.finish !== "" && group.finishes[column[FINISH][at]] !== value.finish) return false;
      if (value.input !== "" && column[TRUNCATED][at] !== Number(value.input)) return false;
      if (value.score === "none" && score !== null) return false;
      if (value.score !== "" && value.score !== "none" && !(score !== null && score >= low && score <= high)) return false;
      const tokens = column[PROMPT][at];
      return value.length === "" || (tokens !== null && tokens >= shortest && tokens <= longest);
    };
    const lines = this.lines.filter(fits);
    const text = value.text.trim().toLowerCase();
    this.present(text ? [] : lines, wanted, text ? "searching…" : "");
    if (text) await this.searchTexts(lines, text, mine, wanted);
  }

  present(lines, wanted, more) {
    const by = {
      up: (line) => line.column[SCORE][line.at] ?? -1,
      down: (line) => -(line.column[SCORE][line.at] ?? -1),
      long: (line) => -(line.column[PROMPT][line.at] ?? 0),
    }[this.controls.order.value];
    this.found = by ? [...lines].sort((a, b) => by(a) - by(b)) : lines;
    const said = `${this.found.length.toLocaleString("en")} of ${this.lines.length.toLocaleString("en")} samples`;
    this.count.textContent = more ? `${said}; ${more}` : `${said}.`;
    this.spacer.style.height = `${this.found.length * ITEM}px`;
    const at = wanted.has("id") ? this.found.findIndex((line) => this.is(line, wanted)) : 0;
    if (at < 0 && !more && wanted.has("id")) this.count.textContent += " The sample of this link is not among them.";
    this.list.scrollTop = Math.max(at, 0) * ITEM;
    this.choose(Math.max(at, 0), !wanted.has("id") && this.quiet);
    this.quiet = false;
  }

  async searchTexts(lines, text, mine, wanted) {
    const files = new Map();
    for (const line of lines) {
      const [file, row] = this.place(line);
      if (!files.has(file)) files.set(file, []);
      files.get(file).push([line, row]);
    }
    const hits = new Set();
    let read = 0;
    let shown = performance.now();
    for (const [file, members] of files) {
      const rows = await this.texts(file);
      if (mine !== this.search) return;
      for (const [line, row] of members) {
        const id = line.group.labels[line.column[AT][line.at]];
        if (`${id}\n${rows[row].flat().join("\n")}`.toLowerCase().includes(text)) hits.add(line);
      }
      read += 1;
      if (performance.now() - shown > 500 && read < files.size) {
        this.present(lines.filter((line) => hits.has(line)), wanted, `searched ${read} of ${files.size} files`);
        shown = performance.now();
      }
    }
    this.present(lines.filter((line) => hits.has(line)), wanted, "");
  }

  // texts

  place({ column, at }) {  // [file, row]
    let last = column[FILES][0];
    for (const start of column[FILES]) if (start[2] <= at) last = start;
    return [last[0], last[1] + at - last[2]];
  }

  async texts(file) {
    try {
      return await load(file);
    } catch (error) {
      this.count.textContent = `${error.message}: it belongs beside this page, in the folder samples.`;
      throw error;
    }
  }

  // the list

  choose(at, quiet = false) {
    this.chosen = Math.min(Math.max(at, 0), this.found.length - 1);
    const top = this.chosen * ITEM;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    const bottom = top + ITEM - this.list.clientHeight;
    if (bottom > this.list.scrollTop) this.list.scrollTop = bottom;
    this.draw();
    const line = this.found[this.chosen];
    if (line && !quiet) history.replaceState(null, "", this.address(line));
    this.show(line);
  }

  draw() {  // only the items in sight exist: 4,750 or 57,000 cost the same
    const first = Math.max(0, Math.floor(this.list.scrollTop / ITEM) - 4);
    const last = Math.min(this.found.length, first + Math.ceil(this.list.clientHeight / ITEM) + 9);
    this.window.style.transform = `translateY(${first * ITEM}px)`;
    this.window.replaceChildren(...this.found.slice(first, last).map((line, at) => this.item(line, first + at)));
    if (this.found.length) this.list.setAttribute("aria-activedescendant", `item-${this.chosen}`);
    else this.list.removeAttribute("aria-activedescendant");
    clearTimeout(this.drawn);
    this.drawn = setTimeout(() => this.preview(), 60);  // texts of what the reader stops at
  }

  item(line, at) {
    const item = element("div", "item");
    item.id = `item-${at}`;
    item.dataset.at = at;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", at === this.chosen);
    item.setAttribute("aria-posinset", at + 1);
    item.setAttribute("aria-setsize", this.found.length);
    const score = line.column[SCORE][line.at];
    const head = element("div");
    head.append(element("span", "score", score === null ? "–" : score.toFixed(1)));
    head.append(element("span", "", line.group.task), element("span", "where", ` · ${this.runs[line.column[RUN]][1]}`));
    item.append(head, element("div", "where preview", "…"));
    return item;
  }

  async preview() {
    for (const item of this.window.children) {
      const line = this.found[Number(item.dataset.at)];
      const [file, row] = this.place(line);
      const text = (await this.texts(file))[row][PREDICTION].trim().slice(0, 160).replace(/\s+/g, " ");
      item.lastChild.textContent = text || "(empty or white space)";
    }
  }

  // one sample

  async show(line) {
    this.showing = line;
    if (!line) {
      this.detail.replaceChildren(element("p", "facts", "No sample fits these filters."));
      return;
    }
    const { group, column, at } = line;
    const others = group.columns.map((other) => ({ group, column: other, at: this.same(line, other) }));
    const systems = [line, ...others.filter((other) => other.column !== column && other.at >= 0)];
    const texts = await Promise.all(systems.map(async (one) => {
      const [file, row] = this.place(one);
      return (await this.texts(file))[row];
    }));
    if (this.showing !== line) return;
    const [mine] = texts;
    const link = element("a", "here", "#");
    link.href = this.address(line);
    link.setAttribute("aria-label", "Link to this sample");
    const heading = element("h3", "", `${group.task} · ${group.labels[column[AT][at]]} `);
    heading.append(link);
    const parts = [heading];
    const block = (title, text) => parts.push(element("h4", "", title), element("pre", "", text));
    const references = mine[REFERENCES];
    const short = references.length > 1 && references.every((text) => text.length <= LINE && !text.includes("\n"));
    if (short) block(`References, ${references.length}`, references.join("\n"));
    else references.forEach((text, n) => block(references.length > 1 ? `Reference ${n + 1}` : "Reference", text));
    parts.push(...this.answers(systems, texts));
    if (mine[WHOLE]) parts.push(this.folded(`Prompt, ${mine[WHOLE].length.toLocaleString("en")} characters`, mine[WHOLE]));
    if (mine[HEAD]) block("Beginning of the text that was fed", mine[HEAD]);
    if (mine[TAIL]) block("End of the text that was fed", mine[TAIL]);
    this.detail.replaceChildren(...parts);
    this.detail.scrollTop = 0;
  }

  same({ column, at }, other) {  // the line of another run on the same sample; -1 where it has none
    return column === other ? at : other[AT].indexOf(column[AT][at]);
  }

  answers(systems, texts) {
    const cards = element("div", "cards");
    const fill = (marked) => cards.replaceChildren(...systems.map((one, n) => this.card(one, texts[n], n && marked ? texts[0] : null)));
    fill(true);
    const heading = element("h4", "", systems.length > 1 ? `Answers of ${systems.length} systems ` : "Answer ");
    if (systems.length > 1) {
      const mark = element("input");
      mark.type = "checkbox";
      mark.checked = true;
      mark.addEventListener("change", () => fill(mark.checked));
      const label = element("label", "facts");
      label.append(mark, " mark what differs from the first");
      heading.append(label);
    }
    return [heading, cards];
  }

  card({ group, column, at }, texts, first) {
    const card = element("div", "card");
    const score = column[SCORE][at];
    const facts = [["score", score === null ? "none" : score.toFixed(2)], ["prompt tokens", column[PROMPT][at]]];
    facts.push(["kept", column[KEPT_TOKENS][at]], ["generated", column[NEW][at]], ["ended by", group.finishes[column[FINISH][at]]]);
    const known = facts.filter(([, value]) => value !== null && value !== "").map(([name, value]) => `${name} ${value.toLocaleString("en")}`);
    if (column[TRUNCATED][at]) known.push("truncated");
    const answer = element("pre", "prediction");
    const pieces = first && differences(first[PREDICTION], texts[PREDICTION]);
    if (pieces) answer.append(...pieces.map(([kind, text]) => (kind ? element(kind, "", text) : text)));
    else answer.textContent = texts[PREDICTION] || "(empty)";
    card.append(element("h5", "", this.runs[column[RUN]][1]), element("p", "facts", known.join(" · ")), answer);
    return card;
  }

  folded(title, text) {
    const details = element("details");
    details.append(element("summary", "", title), element("pre", "", text));
    return details;
  }
}

// Words that two texts share, in order, and what each has alone: [["", text], ["del", of the first], ["ins", of the second]].
function differences(first, second) {
  const words = (text) => text.match(/\p{Script=Han}|[\p{L}\p{N}]+|\s+|[^\p{L}\p{N}\s]/gu) || [];
  const [a, b] = [words(first), words(second)];
  if (a.length * b.length > 4e6) return null;  // too long to be compared word by word
  const width = b.length + 1;
  const common = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      common[i * width + j] = a[i] === b[j]
        ? common[(i + 1) * width + j + 1] + 1
        : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const pieces = [];
  const add = (kind, text) => {
    if (pieces.length && pieces.at(-1)[0] === kind) pieces.at(-1)[1] += text;
    else pieces.push([kind, text]);
  };
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { add("", a[i]); i++; j++; }
    else if (j >= b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) add("del", a[i++]);
    else add("ins", b[j++]);
  }
  return pieces;
}

const samplesSection = document.getElementById("samples");
if (samplesSection) {
  const start = async () => {
    watch.disconnect();
    try {
      window.samples = new Samples(page.runs, await load("index"));
    } catch (error) {
      document.getElementById("count").textContent = `${error.message}: it belongs beside this page, in the folder samples.`;
    }
  };
  const watch = new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) start(); }, { rootMargin: "800px" });
  if (location.hash.startsWith("#samples")) start();
  else watch.observe(samplesSection);
}
