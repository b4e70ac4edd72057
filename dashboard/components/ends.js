// What a figure says of itself in `meta` and only the browser can place: labels at the ends of lines, kept apart from each
// other whatever is zoomed in on, panels in as many columns as there is room for, and the same figure at paper size.
const LABEL_PITCH = 14; // pixels from one label to the next
const NARROW = 640;
const [BELOW, ROW, ROWS] = [58, 17, 12]; // pixels from the axis to the first row of labels below it, and from row to row
const LABEL_WIDTH = 150;
const PAPER_ROOM = 500; // pixels from which on labels stand beside the axes on paper

// Where a line is last seen: its height in pixels at the right edge, or at its own end if that comes first.
function lastSeen(trace, xaxis, yaxis) {
  const edge = xaxis._length;
  const at = (i) => [xaxis.d2p(trace.x[i]), yaxis.d2p(trace.y[i])];
  let next = null;
  for (let i = trace.x.length - 1; i >= 0; i--) {
    if (trace.y[i] === null || trace.y[i] === undefined) continue;
    const [px, py] = at(i);
    if (!Number.isFinite(px) || !Number.isFinite(py)) continue;
    if (px > edge + 0.5) { next = [px, py]; continue; }
    if (next) return py + ((next[1] - py) * (edge - px)) / (next[0] - px);
    return px < 0 ? null : py;
  }
  return null;
}

// Push labels apart, as little as it takes, and keep them between top and bottom.
function spread(labels, height) {
  labels.sort((a, b) => a.at - b.at);
  labels.forEach((label, i) => { label.place = Math.max(label.at, i ? labels[i - 1].place + LABEL_PITCH : 6); });
  for (let i = labels.length - 1, limit = height - 4; i >= 0 && labels[i].place > limit; i--, limit -= LABEL_PITCH) labels[i].place = limit;
  // blocks that were only pushed down move half of the way back up
  for (let i = 0; i < labels.length;) {
    let j = i + 1;
    while (j < labels.length && labels[j].place - labels[j - 1].place < LABEL_PITCH + 0.01) j++;
    const block = labels.slice(i, j);
    const shift = block.reduce((sum, label) => sum + label.place - label.at, 0) / block.length;
    const room = block[0].place - (i ? labels[i - 1].place + LABEL_PITCH : 6);
    const up = Math.max(0, Math.min(shift, room));
    for (const label of block) label.place -= up;
    i = j;
  }
  return labels;
}

// Labels below the axes, in as many columns as fit, where there is no room beside them.
function below(labels, { width, height, columns, rows }) {
  const shown = labels.length > columns * rows ? labels.slice(0, columns * rows - 1) : labels;
  const rest = labels.length - shown.length;
  return [...shown, ...(rest ? [{ text: `+ ${rest} more, see the table`, color: "inherit" }] : [])].map((label, i) => ({
    ...label,
    text: `${label.dashed ? "╍" : "━"} ${label.text}`,
    x: ((i % columns) * (width / columns) - 40) / width,
    y: -(BELOW + ROW * Math.floor(i / columns)) / height,
  }));
}

// The labels of a drawn figure as annotations.
function endLabels(root) {
  const { xaxis, yaxis, margin } = root._fullLayout;
  const height = yaxis._length;
  const { flow } = root.layout.meta;
  const labels = [];
  for (const trace of root.data) {
    if (!trace.meta?.label) continue;
    const hidden = trace.visible === "legendonly";
    const at = hidden ? height : lastSeen(trace, xaxis, yaxis);
    if (!flow && (at === null || at < -4 || at > height + 4)) continue;
    const dashed = !["solid", undefined].includes(trace.line?.dash);
    labels.push({ at, text: trace.meta.label, color: trace.meta.color, name: trace.legendgroup, hidden, dashed, strong: trace.meta.strong });
  }
  for (const bound of root.layout.meta.bounds ?? []) {
    const at = yaxis.d2p(bound.y);
    if (flow || (at >= -4 && at <= height + 4)) labels.push({ at, text: bound.label, color: bound.color, dashed: true });
  }
  const room = Math.max(1, Math.floor((height + LABEL_PITCH - 10) / LABEL_PITCH));
  if (!flow && labels.length > room) {
    labels.sort((a, b) => (b.strong ?? !b.name) - (a.strong ?? !a.name));
    const rest = labels.splice(room - 1);
    labels.push({ at: height, text: `+ ${rest.length} more, see the table`, color: root.layout.xaxis.tickfont.color });
  }
  const placed = flow
    ? below(labels, { width: xaxis._length + margin.l + margin.r - 16, height, ...flow })
    : spread(labels, height).map((label) => ({ ...label, x: 1, y: 1 - label.place / height }));
  return placed.map((label) => ({
    name: label.name ? `end-label ${label.name}` : "end-label",
    text: label.strong ? `<b>${label.text}</b>` : label.hidden ? `<s>${label.text}</s>` : label.text,
    xref: "paper", x: label.x, xanchor: "left", xshift: flow ? 0 : 8,
    yref: "paper", y: label.y, yanchor: "middle",
    showarrow: false, captureevents: Boolean(label.name), opacity: label.hidden ? 0.6 : 1,
    font: { color: label.color === "inherit" ? root.layout.xaxis.tickfont.color : label.color, size: 12 },
  }));
}

// Place the labels anew, unless they are where they were.
function placeEnds(root) {
  if (!root.layout?.meta?.ends || !root._fullLayout?.yaxis) return undefined;
  const labels = endLabels(root);
  const stamp = JSON.stringify([labels, root.layout.annotations?.length ?? 0]);
  if (root.endStamp === stamp && root.layout.annotations?.length) return undefined;
  root.endStamp = JSON.stringify([labels, labels.length]);
  return window.Plotly.relayout(root, { annotations: labels });
}

// Labels follow the zoom. Pressing one hides its line, and shows it again; that lasts while data comes in.
function followEnds(root) {
  root.on("plotly_relayout", (change) => {
    if (!("annotations" in change)) placeEnds(root);
  });
  root.on("plotly_clickannotation", ({ annotation }) => {
    const group = annotation.name?.match(/^end-label (.+)$/)?.[1];
    if (!group) return;
    root.hiddenLines ??= new Set();
    if (!root.hiddenLines.delete(group)) root.hiddenLines.add(group);
    root.draw();
  });
}

// Leave out what was hidden by hand, and put panels into as many columns as fit.
function arrange(figure, width, hiddenLines) {
  for (const trace of figure.data) if (hiddenLines?.has(trace.legendgroup)) trace.visible = "legendonly";
  const { meta, margin } = figure.layout;
  if (meta?.ends && margin.r < 40) {
    const count = figure.data.filter((trace) => trace.meta?.label).length + (meta.bounds?.length ?? 0);
    const columns = Math.max(1, Math.floor(width / LABEL_WIDTH));
    const rows = Math.min(ROWS, Math.ceil(count / columns));
    meta.flow = { columns, rows };
    margin.b += ROW * rows + 16;
    figure.layout.height += ROW * rows + 16;
  }
  const panels = meta?.panels;
  if (!panels) return figure;
  const columns = width < NARROW ? Math.max(1, Math.floor(width / 300)) : Math.min(panels.count, panels.columns);
  const rows = Math.ceil(panels.count / columns);
  const { t, b } = figure.layout.margin;
  const height = rows * panels.height + t + b;
  figure.layout.height = height;
  const [gapX, gapY] = [46 / width, 46 / (height - t - b)];
  const [w, h] = [(1 - gapX * (columns - 1)) / columns, (1 - gapY * (rows - 1)) / rows];
  for (let i = 0; i < panels.count; i++) {
    const [row, column] = [Math.floor(i / columns), i % columns];
    const suffix = i ? String(i + 1) : "";
    const top = 1 - row * (h + gapY);
    Object.assign(figure.layout[`xaxis${suffix}`], { domain: [column * (w + gapX), column * (w + gapX) + w], anchor: `y${suffix}` });
    Object.assign(figure.layout[`yaxis${suffix}`], { domain: [Math.max(0, top - h), top], anchor: `x${suffix}` });
    const title = figure.layout.annotations.find((note) => note.name === `panel ${i}`);
    Object.assign(title, { x: column * (w + gapX), y: top });
  }
  return figure;
}

// The figure on white paper, drawn out of sight: `width` CSS pixels, in the light theme whatever the page has.
async function onPaper(root, data, width) {
  const Plotly = await plotly();
  const sheet = document.createElement("div");
  sheet.style.cssText = `position:fixed;left:-10000px;top:0;width:${width}px;color-scheme:light`;
  root.parentElement.append(sheet);
  const tokens = resolver(sheet);
  const whole = tokens.walk(data.figure, "");
  const figure = arrange(width < PAPER_ROOM ? fit(whole, width) : whole, width, root.hiddenLines);
  tokens.done();
  const { layout } = figure;
  Object.assign(layout, { width, paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff" });
  layout.font.family = "Helvetica, Arial, sans-serif";
  for (const axis of ["xaxis", "yaxis"]) {
    const shown = root._fullLayout?.[axis];
    if (shown && !layout.meta?.panels) Object.assign(layout[axis], { range: [...shown.range], autorange: false });
  }
  await Plotly.newPlot(sheet, figure.data, layout, { staticPlot: true });
  await placeEnds(sheet);
  return sheet;
}
