// A table whose rows are patched in place: focus, selection, edits and scroll position survive new data. Everything in
// a cell is text; nothing is ever parsed as HTML.
const SVG = "http://www.w3.org/2000/svg";

function make(tag, text, properties) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  return Object.assign(element, properties);
}

function hidden(element) {
  element.setAttribute("aria-hidden", "true");
  return element;
}

function spark(points, text) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "-1 -1 86 22");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", text);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.map(([x, y]) => `${84 * x},${20 * (1 - y)}`).join(" "));
  svg.append(line);
  return svg;
}

function stroke(color, dash) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 26 8");
  svg.setAttribute("class", "stroke");
  const line = document.createElementNS(SVG, "line");
  Object.entries({ x1: 1, x2: 25, y1: 4, y2: 4, "stroke-dasharray": dash === "solid" ? "none" : dash })
    .forEach(([name, value]) => line.setAttribute(name, value));
  line.style.stroke = color;
  svg.append(line);
  return hidden(svg);
}

function write(cell, column, value) {
  const stamp = JSON.stringify(value ?? {});
  if (cell.stamp === stamp || cell.editing) return;
  cell.stamp = stamp;
  const { text = "", title = "", tone = "", glyph = "", bar = null, href = "", chips = [], act = "", color = "", dash = "" } = value ?? {};
  const focus = cell.contains(document.activeElement) ? document.activeElement.className : null;
  const parts = [];
  if (bar !== null) {
    const track = hidden(make("span", "", { className: "track" }));
    track.append(make("span"));
    track.firstChild.style.width = `${100 * bar}%`;
    parts.push(track);
  }
  if (color && dash) parts.push(stroke(color, dash));
  else if (color) {
    const dot = hidden(make("span", "", { className: "dot" }));
    dot.style.background = color;
    parts.push(dot);
  }
  if (act) parts.push(make("button", act, { type: "button", className: "act" }));
  for (const chip of chips) parts.push(make("span", chip, { className: "chip" }));
  if (value?.spark) parts.push(spark(value.spark, text));
  else if (text || href || glyph) {
    const kind = href ? "a" : cell.picks ? "button" : "span";
    const inner = make(kind, "", { className: `${kind === "button" ? "pick " : ""}${tone ? `tone-${tone}` : ""}`.trim() });
    if (href) inner.href = href;
    if (kind === "button") inner.type = "button";
    if (title) inner.title = title;
    if (glyph) inner.append(hidden(make("i", glyph)), " ");
    // names of a sweep are lists: on a narrow screen they break after a comma
    if (column.kind === "name") inner.append(...text.split(/(?<=,)/).flatMap((part) => [part, make("wbr")]));
    else inner.append(text);
    parts.push(inner);
  }
  if (column.edit) {
    const button = make("button", "", { type: "button", className: "edit", title: `Edit ${column.title}` });
    button.setAttribute("aria-label", `Edit ${column.title}`);
    button.append(hidden(make("span", "✎")));
    parts.push(button);
  }
  cell.start = value?.edit || text;
  cell.title = value?.spark ? title : "";
  cell.replaceChildren(...parts);
  if (focus !== null) [...cell.querySelectorAll("a, button")].find((e) => e.className === focus)?.focus();
}

// A field in place of the cell. Enter or leaving it reports the text, Escape does not.
function edit(cell, column, id, root) {
  if (cell.editing) return;
  const before = cell.start ?? "";
  const field = make("input", "", { type: "text", value: before, className: "field", maxLength: 4000 });
  field.setAttribute("aria-label", `${column.title}, Enter to keep, Escape to leave as it was`);
  const end = (keep, back) => {
    if (!cell.editing) return;
    cell.editing = false;
    cell.stamp = null;
    write(cell, column, root.rows.get(id)?.cells[column.key]);
    if (back) cell.querySelector(".edit")?.focus();
    if (keep && field.value !== before) root.said.setTriggerValue("edit", { id, column: column.key, text: field.value });
  };
  field.onkeydown = (event) => {
    if (event.key === "Enter" || event.key === "Escape") { event.preventDefault(); end(event.key === "Enter", true); }
    event.stopPropagation();
  };
  field.onblur = () => end(true, false);
  cell.editing = true;
  cell.replaceChildren(field);
  field.focus();
}

function header(root, table, data) {
  const stamp = JSON.stringify([data.columns, data.sort, data.select]);
  if (table.stamp === stamp) return;
  const shape = JSON.stringify([data.columns, data.select]);
  if (table.shape !== shape) table.tBodies[0].replaceChildren();
  [table.stamp, table.shape] = [stamp, shape];
  const focused = document.activeElement?.dataset?.sort;
  const row = make("tr");
  if (data.select) {
    const cell = make("th", "", { scope: "col", className: "check" });
    const box = make("input", "", { type: "checkbox", className: "all", title: "Select all that are shown" });
    box.setAttribute("aria-label", "Select all that are shown");
    cell.append(box);
    row.append(cell);
  }
  for (const column of data.columns) {
    const cell = make("th", "", { scope: "col", className: `${column.kind} ${column.minor ? "minor" : ""}` });
    if (column.help) cell.title = column.help;
    if (!column.sort) cell.textContent = column.title;
    else {
      const falling = data.sort === `-${column.sort}`;
      const sorted = falling || data.sort === column.sort;
      const button = make("button", column.title, { type: "button", className: "sort" });
      button.dataset.sort = column.sort;
      button.append(hidden(make("span", sorted ? (falling ? " ↓" : " ↑") : " ↕", { className: sorted ? "" : "idle" })));
      cell.setAttribute("aria-sort", sorted ? (falling ? "descending" : "ascending") : "none");
      cell.append(button);
    }
    row.append(cell);
  }
  table.tHead.replaceChildren(row);
  if (focused) table.tHead.querySelector(`[data-sort="${CSS.escape(focused)}"]`)?.focus();
}

// Checkboxes: what is checked stays so while rows come and go; only a newer selection of the page's replaces it.
function follow(root, data) {
  if (root.version !== data.selection.version) {
    root.version = data.selection.version;
    root.checked = new Set(data.selection.ids);
  }
  const boxes = [...root.querySelectorAll("tbody input.one")];
  for (const box of boxes) {
    box.checked = root.checked.has(box.closest("tr").dataset.id);
    box.closest("tr").classList.toggle("checked", box.checked);
  }
  const all = root.querySelector("input.all");
  if (!all) return;
  const count = boxes.filter((box) => box.checked).length;
  all.checked = boxes.length > 0 && count === boxes.length;
  all.indeterminate = count > 0 && count < boxes.length;
}

function check(root, ids, on) {
  for (const id of ids) root.checked[on ? "add" : "delete"](id);
  follow(root, root.data);
  root.said.setStateValue("selected", { version: root.version, ids: [...root.checked] });
}

function fill(root, body, data) {
  const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  let at = 0;
  const place = (key, build) => {
    let row = old.get(key);
    old.delete(key);
    if (!row) { row = build(); row.dataset.key = key; }
    if (body.rows[at] !== row) body.insertBefore(row, body.rows[at] ?? null);
    at += 1;
    return row;
  };
  let marked = null;
  for (const item of data.rows) {
    const row = place(`row ${item.id}`, () => {
      const made = make("tr");
      made.dataset.id = item.id;
      if (data.select) {
        const box = make("input", "", { type: "checkbox", className: "one" });
        const cell = made.insertCell();
        cell.className = "check";
        cell.append(box);
      }
      data.columns.forEach((column, j) => {
        const cell = made.insertCell();
        cell.className = `${column.kind} ${column.minor ? "minor" : ""}`;
        cell.picks = data.pick && j === 0;
      });
      return made;
    });
    const was = row.classList.contains("marked");
    row.className = [item.faded && "faded", item.marked && "marked"].filter(Boolean).join(" ");
    if (item.marked) row.setAttribute("aria-current", "true"); else row.removeAttribute("aria-current");
    if (item.marked && !was) marked = row;
    const cells = [...row.cells].slice(data.select ? 1 : 0);
    data.columns.forEach((column, j) => write(cells[j], column, item.cells[column.key]));
    const first = item.cells[data.columns[0].key];
    if (data.select) row.querySelector("input.one").setAttribute("aria-label", `Select ${first?.text ?? item.id}`);
    if (!item.detail) continue;
    const more = place(`more ${item.id}`, () => {
      const made = make("tr", "", { className: "detail" });
      const cell = made.insertCell();
      cell.colSpan = data.columns.length + (data.select ? 1 : 0);
      const text = make("pre", "", { tabIndex: 0 });
      text.setAttribute("role", "region");
      text.setAttribute("aria-label", `Log of ${first?.text ?? item.id}`);
      cell.append(text);
      return made;
    });
    const text = more.querySelector("pre");
    if (text.textContent !== item.detail) { text.textContent = item.detail; text.scrollTop = text.scrollHeight; }
  }
  for (const row of old.values()) row.remove();
  return marked;
}

function press(root, event) {
  const { data, said } = root;
  const target = event.target;
  const row = target.closest("tr");
  if (!row || target.closest(".field, .detail")) return;
  if (target.matches("input.all")) return check(root, [...root.querySelectorAll("tr[data-id]")].map((r) => r.dataset.id), target.checked);
  const sort = target.closest("button.sort");
  if (sort) {
    // the largest first, then the smallest first, then as it was
    const key = sort.dataset.sort;
    data.sort = data.sort === `-${key}` ? key : data.sort === key ? "" : `-${key}`;
    return said.setTriggerValue("sort", data.sort);
  }
  const id = row.dataset.id;
  if (!id) return;
  if (target.closest("td.check")) {
    const box = row.querySelector("input.one");
    const on = target === box ? box.checked : !box.checked;
    const ids = [...root.querySelectorAll("tr[data-id]")].map((r) => r.dataset.id);
    const [from, to] = [ids.indexOf(root.last), ids.indexOf(id)].sort((a, b) => a - b);
    check(root, event.shiftKey && from >= 0 ? ids.slice(from, to + 1) : [id], on);
    root.last = id;
    return;
  }
  const act = target.closest("button.act");
  if (act) return said.setTriggerValue("acted", { id, name: act.textContent });
  const cell = target.closest("td");
  const column = data.columns[cell.cellIndex - (data.select ? 1 : 0)];
  if (column.edit && (target.closest("button.edit") || event.detail > 1)) return edit(cell, column, id, root);
  if (column.edit && !target.closest("a")) return;
  if (`${getSelection()}`) return;
  // a plain click on a row with a link stays in this session; any other click on the link is the browser's own
  const link = row.querySelector("a");
  const pressed = target.closest("a");
  if (pressed && pressed !== link) return;  // a second link leads elsewhere, and the browser there
  if (link && !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey)) {
    event.preventDefault();
    said.setTriggerValue("opened", id);
  } else if (!link && data.pick) said.setTriggerValue("picked", id);
}

export default function ({ data, parentElement, setStateValue, setTriggerValue }) {
  const root = parentElement.querySelector(".n2n-table");
  const table = root.querySelector("table");
  root.data = data;
  root.said = { setStateValue, setTriggerValue };
  root.rows = new Map(data.rows.map((item) => [item.id, item]));
  root.checked ??= new Set();
  table.setAttribute("aria-label", data.label);
  table.classList.toggle("picks", data.pick);
  header(root, table, data);
  const marked = fill(root, table.tBodies[0], data);
  follow(root, data);
  root.style.maxHeight = data.height ? `${data.height}px` : "";
  root.tabIndex = root.scrollHeight > root.clientHeight || root.scrollWidth > root.clientWidth ? 0 : -1;
  // inside the table only: the page itself stays where it is
  if (marked) root.scrollTop = marked.offsetTop - (root.clientHeight - marked.offsetHeight) / 2;
  table.onclick = (event) => press(root, event);
}
