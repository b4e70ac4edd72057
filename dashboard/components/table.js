// A table whose rows are patched in place: focus, selection and scroll position survive new data. Everything is text.
function write(cell, value) {
  const { text = "", title = "", tone = "", glyph = "", bar = null, href = "" } = value ?? {};
  const stamp = JSON.stringify([text, title, tone, glyph, bar, href]);
  if (cell.stamp === stamp) return;
  cell.stamp = stamp;
  const focused = cell.contains(document.activeElement);
  const inner = document.createElement(href ? "a" : "span");
  if (href) inner.href = href;
  inner.className = tone ? `tone-${tone}` : "";
  if (title) inner.title = title;
  if (glyph) {
    const mark = document.createElement("i");
    mark.textContent = glyph;
    mark.setAttribute("aria-hidden", "true");
    inner.append(mark, " ");
  }
  inner.append(text);
  cell.replaceChildren(inner);
  if (bar !== null) {
    const track = document.createElement("span");
    track.className = "track";
    track.setAttribute("aria-hidden", "true");
    const fill = document.createElement("span");
    fill.style.width = `${100 * bar}%`;
    track.append(fill);
    cell.prepend(track);
  }
  if (focused) cell.querySelector("a")?.focus();
}

function header(table, columns) {
  const stamp = JSON.stringify(columns);
  if (table.stamp === stamp) return;
  table.stamp = stamp;
  const row = document.createElement("tr");
  for (const column of columns) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = column.title;
    cell.className = `${column.kind} ${column.minor ? "minor" : ""}`;
    if (column.help) cell.title = column.help;
    row.append(cell);
  }
  table.tHead.replaceChildren(row);
  table.tBodies[0].replaceChildren();
}

export default function ({ data, parentElement, setTriggerValue }) {
  const table = parentElement.querySelector("table");
  const body = table.tBodies[0];
  table.setAttribute("aria-label", data.label);
  header(table, data.columns);
  const old = new Map([...body.rows].map((row) => [row.dataset.id, row]));
  data.rows.forEach((item, i) => {
    let row = old.get(item.id);
    old.delete(item.id);
    if (!row) {
      row = document.createElement("tr");
      row.dataset.id = item.id;
      for (const column of data.columns) row.insertCell().className = `${column.kind} ${column.minor ? "minor" : ""}`;
    }
    if (body.rows[i] !== row) body.insertBefore(row, body.rows[i] ?? null);
    row.className = item.faded ? "faded" : "";
    data.columns.forEach((column, j) => write(row.cells[j], item.cells[column.key]));
  });
  for (const row of old.values()) row.remove();
  const box = table.parentElement;
  box.style.maxHeight = data.height ? `${data.height}px` : "";
  box.tabIndex = box.scrollHeight > box.clientHeight || box.scrollWidth > box.clientWidth ? 0 : -1;
  // a plain click on a row with a link stays in this session; any other click on the link is the browser's own
  body.onclick = (event) => {
    const link = event.target.closest("tr")?.querySelector("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || `${getSelection()}`) return;
    event.preventDefault();
    setTriggerValue("open", link.closest("tr").dataset.id);
  };
}
