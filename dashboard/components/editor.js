// A YAML editor: a plain text area, so that undo, selection, input methods and screen readers are the browser's own, over
// a painted copy of the lines in view with colours, line numbers and marks. Everything is text, nothing is read as HTML.
const PAUSE = 350; // milliseconds without a key after which the service is asked
const STORE = "n2n-launch-draft"; // what was typed, for a page that is loaded again
const MOST_KEPT = 20; // drafts of different sources

function stored() {
  try { return JSON.parse(localStorage.getItem(STORE)) ?? {}; } catch { return {}; }
}

function store(source, draft) {
  const kept = Object.entries({ ...stored(), [source]: { ...draft, at: Date.now() } }).sort((a, b) => b[1].at - a[1].at);
  // a storage that is full or forbidden costs a reload its draft, nothing else
  try { localStorage.setItem(STORE, JSON.stringify(Object.fromEntries(kept.slice(0, MOST_KEPT)))); } catch { return; }
}

// What was typed into a source's text; without a source what was typed last, whatever it began as.
function recall(source) {
  const kept = stored();
  const name = source || Object.keys(kept).sort((a, b) => kept[b].at - kept[a].at)[0];
  return typeof kept[name]?.text === "string" ? { source: name, ...kept[name] } : null;
}

// Underlines what stands at a column, up to the end of the word, across the coloured pieces.
function underline(row, column) {
  const text = row.textContent;
  const start = Math.min(column - 1, text.length);
  const word = text.slice(start).match(/^[^\s,:{}[\]]+/)?.[0].length ?? 1;
  let at = 0;
  for (const node of [...row.childNodes]) {
    const length = node.textContent.length;
    const from = Math.max(0, start - at), to = Math.min(length, start + word - at);
    at += length;
    if (to <= from) continue;
    const leaf = node.nodeType === Node.TEXT_NODE ? node : node.firstChild;
    const range = document.createRange();
    range.setStart(leaf, from);
    range.setEnd(leaf, to);
    range.surroundContents(document.createElement("u"));
  }
}

class Editor {
  constructor(root) {
    this.root = root;
    this.area = root.querySelector("textarea");
    this.numbers = root.querySelector(".gutter > div");
    this.paper = root.querySelector(".paint");
    this.lines = [""];
    this.marks = new Map();
    this.changed = new Set();
    this.area.addEventListener("input", () => this.typed());
    this.area.addEventListener("scroll", () => this.paint());
    this.area.addEventListener("blur", () => this.send());
    this.area.addEventListener("keydown", (event) => this.key(event));
    this.observer = new ResizeObserver(() => this.paint());
    this.observer.observe(this.area);
  }

  key(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); this.send(); return; }
    if (event.key !== "Enter" || event.shiftKey || event.altKey || event.isComposing) return;
    const { value, selectionStart: at } = this.area;
    const line = value.slice(value.lastIndexOf("\n", at - 1) + 1, at);
    const indent = line.match(/^ */)[0] + (/:\s*$/.test(line) ? "  " : "");
    if (!indent) return;
    event.preventDefault();
    document.execCommand("insertText", false, "\n" + indent); // the one way that keeps the browser's undo
  }

  typed() {
    this.lines = this.area.value.split("\n");
    this.paint();
    this.remember();
    this.say("Checking …", "");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.send(), PAUSE);
  }

  remember() {
    store(this.source, { text: this.area.value, version: this.version });
  }

  send() {
    clearTimeout(this.timer);
    if (this.area.value === this.sent) return;
    this.sent = this.area.value;
    this.report("draft", { text: this.sent, source: this.source, version: this.version });
  }

  write(text) {
    this.area.value = text;
    this.area.scrollTop = this.area.scrollLeft = 0;
    this.lines = text.split("\n");
  }

  // The text of the server where it is new; what was typed before a reload where it is the same text's draft.
  take(data) {
    const first = this.version === undefined;
    if (!first && data.version === this.version) return;
    this.version = data.version;
    this.source = data.source;
    const kept = first ? recall(data.source) : null;
    if (kept && (data.version === 0 || kept.version === data.version) && kept.text !== data.text) {
      this.source = kept.source;
      this.write(kept.text);
      this.sent = undefined;
      this.send();
      return;
    }
    this.write(data.text ?? "");
    this.sent = this.area.value;
    if (!first) this.remember();
  }

  say(text, tone) {
    const state = this.root.querySelector(".state");
    state.className = `state ${tone}`;
    if (state.textContent !== text) state.textContent = text;
  }

  judge(data) {
    this.changed = new Set(data.changed);
    this.marks = new Map();
    for (const problem of data.problems) {
      if (!problem.line) continue;
      const here = this.marks.get(problem.line) ?? [];
      this.marks.set(problem.line, [...here, problem]);
    }
    this.area.setAttribute("aria-label", data.label);
    this.area.setAttribute("aria-invalid", String(data.problems.length > 0));
    this.area.placeholder = data.placeholder;
    if (this.area.value === this.sent) this.say(data.status, data.tone);
    this.list(data.problems);
    this.paint();
  }

  list(problems) {
    const stamp = JSON.stringify(problems);
    if (stamp === this.listed) return;
    this.listed = stamp;
    const list = this.root.querySelector("ol");
    list.replaceChildren(...problems.map((problem) => {
      const item = element("li");
      const row = element(problem.line ? "button" : "div");
      if (problem.line) { row.type = "button"; row.onclick = () => this.go(problem.line, problem.column ?? 1); }
      const said = element("span", "said");
      if (problem.path) said.append(element("code", "", problem.path), " ");
      said.append(problem.message);
      if (problem.remedy) said.append(element("span", "remedy", `→ ${problem.remedy}`));
      row.append(element("span", "line", problem.line ? `line ${problem.line}` : "config"), said);
      item.append(row);
      return item;
    }));
    list.setAttribute("aria-label", "Problems of the config");
    const scrolls = list.scrollHeight > list.clientHeight && !list.querySelector("button");
    if (scrolls) list.tabIndex = 0; else list.removeAttribute("tabindex");
  }

  go(line, column) {
    const start = this.lines.slice(0, line - 1).reduce((sum, text) => sum + text.length + 1, 0) + column - 1;
    this.area.focus();
    this.area.setSelectionRange(start, start);
    this.area.scrollTop = Math.max(0, (line - 1) * this.height() - this.area.clientHeight / 2);
    this.paint();
  }

  height() { return parseFloat(getComputedStyle(this.area).lineHeight) || 20; }

  paint() {
    const height = this.height();
    const first = Math.max(0, Math.floor(this.area.scrollTop / height) - 1);
    const last = Math.min(this.lines.length, first + Math.ceil(this.area.clientHeight / height) + 3);
    const rows = [], numbers = [];
    for (let i = first; i < last; i++) {
      const marks = this.marks.get(i + 1) ?? [];
      const row = element("div");
      row.append(...coloured(this.lines[i]));
      if (!this.lines[i]) row.append("\u200b"); // a row of no height otherwise
      const number = element("span", `${marks.length ? "bad" : ""} ${this.changed.has(i + 1) ? "changed" : ""}`, `${marks.length ? "✕ " : ""}${i + 1}`);
      if (marks.length) {
        row.className = "bad";
        number.title = marks.map((m) => m.message + (m.remedy ? ` → ${m.remedy}` : "")).join("\n");
        for (const mark of marks) if (mark.column) underline(row, mark.column);
      }
      rows.push(row);
      numbers.push(number);
    }
    this.paper.replaceChildren(...rows);
    this.numbers.replaceChildren(...numbers);
    const top = first * height - this.area.scrollTop;
    this.paper.style.transform = `translate(${-this.area.scrollLeft}px, ${top}px)`;
    this.numbers.style.transform = `translateY(${top}px)`;
    this.numbers.parentElement.style.width = `${`${this.lines.length}`.length + 4}ch`;
  }
}

export default function ({ data, parentElement, setStateValue }) {
  const root = parentElement.querySelector(".n2n-editor");
  const editor = (root.editor ??= new Editor(root));
  editor.report = setStateValue;
  editor.take(data);
  editor.judge(data);
  return () => { clearTimeout(editor.timer); editor.observer.disconnect(); };
}
