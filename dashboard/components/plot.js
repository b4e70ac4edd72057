// Draws a figure with Plotly.react: zoom, pan and hidden series survive new data for as long as layout.uirevision stays.
const WIDEST_MARGIN = 0.22; // of the width; where the labels would take more they move from the margin into the plot

// "@name" and "@name:0.2" stand for the custom property --n2n-name, which only the browser can resolve for its theme.
function resolver(element) {
  const probe = document.createElement("i");
  element.append(probe);
  const known = {};
  const resolve = (token) => {
    const [, name, alpha] = token.match(/^@([\w-]+)(?::([\d.]+))?$/);
    probe.style.color = `var(--n2n-${name})`;
    const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g);
    return `rgba(${r},${g},${b},${alpha ?? 1})`;
  };
  const walk = (value, key) => {
    if (typeof value === "string") return /color$/.test(key) && value[0] === "@" ? (known[value] ??= resolve(value)) : value;
    if (Array.isArray(value)) return value.length && (typeof value[0] === "object" || /color$/.test(key)) ? value.map((item) => walk(item, key)) : value;
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, walk(v, k)]));
    return value;
  };
  return { walk, done: () => probe.remove() };
}

function fit(figure, width) {
  if (figure.layout.margin.r <= WIDEST_MARGIN * width) return figure;
  figure.layout.margin.r = 10;
  const [start, end] = figure.layout.xaxis.range ?? [0, 0];
  for (const note of figure.layout.annotations ?? []) {
    const room = note.xref !== "paper" && (note.x - start) / (end - start) < 0.7;
    if (note.name !== "end-label" || room) continue;
    // above a curve that levels out, below one that keeps falling, on the line of the bound
    const place = { bottom: { yshift: 20 }, middle: { xshift: -6, yshift: -12 }, top: { bgcolor: figure.layout.plot_bgcolor } };
    Object.assign(note, { xanchor: "right", xshift: 0 }, place[note.yanchor]);
  }
  return figure;
}

// Which points are clicked, and what is zoomed in on: null while all is shown, otherwise the range of x in its own units.
function listen(root) {
  root.heard = true;
  root.on("plotly_click", (event) => {
    const point = event.points.find((p) => p.id !== undefined);
    if (point && root.said.listen) root.said.setTriggerValue("clicked", String(point.id));
  });
  root.on("plotly_relayout", (change) => {
    if (!root.said.listen || !Object.keys(change).some((key) => key.startsWith("xaxis."))) return;
    clearTimeout(root.later);
    root.later = setTimeout(() => {
      const { type, autorange, range } = root._fullLayout.xaxis;
      const whole = root.said.range;
      const all = autorange || (whole && range.every((v, i) => Math.abs(v - whole[i]) < 1e-9));
      const shown = range.map((v) => (type === "log" ? 10 ** v : Number(v)));
      root.said.setStateValue("zoom", all ? null : shown);
    }, 300);
  });
}

export default function ({ data, parentElement, setStateValue, setTriggerValue }) {
  const root = parentElement.querySelector(".n2n-plot");
  data = { ...data, figure: JSON.parse(data.figure) };
  // a copy: Plotly zooms by changing the numbers of the range that it was given
  const range = data.figure.layout.xaxis?.range?.slice();
  root.said = { listen: data.listen, range, setStateValue, setTriggerValue };
  root.dataset.name = data.name;
  root.setAttribute("role", "figure");
  root.setAttribute("aria-label", data.alt);
  root.style.height = `${data.figure.layout.height}px`;
  root.draw = async () => {
    const Plotly = await plotly();
    if (!root.isConnected || !root.offsetWidth) return;
    const tokens = resolver(root.parentElement);
    const figure = arrange(fit(tokens.walk(data.figure, ""), root.offsetWidth), root.offsetWidth, root.hiddenLines);
    tokens.done();
    root.style.height = `${figure.layout.height}px`;
    figure.layout.font.family = getComputedStyle(root).fontFamily;
    figure.layout.width = root.offsetWidth;
    await Plotly.react(root, figure.data, figure.layout, {
      displaylogo: false,
      displayModeBar: "hover",
      modeBarButtonsToRemove: ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg", filename: data.name },
    });
    await placeEnds(root);
    if (!root.heard) { listen(root); followEnds(root); }
  };
  root.onPaper = (width) => onPaper(root, data, width);
  root.observer ??= (() => {
    let width = root.offsetWidth;
    const observer = new ResizeObserver(() => {
      if (root.offsetWidth && root.offsetWidth !== width) { width = root.offsetWidth; root.draw(); }
    });
    observer.observe(root);
    return observer;
  })();
  root.draw();
  return () => { clearTimeout(root.later); root.observer.disconnect(); window.Plotly?.purge(root); root.heard = false; };
}
