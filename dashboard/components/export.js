// Saves charts of the page at paper size, in the light theme: SVG and PDF as vectors, PNG at 300 dots per inch.
const MM = 96 / 25.4; // CSS pixels in a millimetre
const DENSITY = 300 / 96;

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function picture(chart, format, width) {
  const root = document.querySelector(`.n2n-plot[data-name="${CSS.escape(chart)}"]`);
  if (!root?.onPaper || !root._fullLayout) throw new Error("the chart is not on the page");
  const sheet = await root.onPaper(width);
  try {
    const height = sheet._fullLayout.height;
    if (format === "png") {
      const url = await window.Plotly.toImage(sheet, { format, width, height, scale: DENSITY });
      return await (await fetch(url)).blob();
    }
    const url = await window.Plotly.toImage(sheet, { format: "svg", width, height });
    const text = decodeURIComponent(url.slice(url.indexOf(",") + 1));
    if (format === "svg") return new Blob([text], { type: "image/svg+xml" });
    const svg = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
    const shown = document.importNode(svg, true);
    sheet.append(shown);
    return await pdfOf(shown, width, height);
  } finally {
    window.Plotly.purge(sheet);
    sheet.remove();
  }
}

function fileRow(root, files) {
  const row = document.createElement("div");
  row.append(Object.assign(document.createElement("span"), { textContent: "Data, program" }));
  for (const title of files) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: title });
    button.onclick = () => {
      root.said.textContent = "Asking the server …";
      root.waiting = `${Date.now()}`;
      root.ask("wanted", { title, serial: root.waiting });
    };
    row.append(button);
  }
  return row;
}

function receive(root, file) {
  if (!file || file.serial !== root.waiting) return;
  root.waiting = null;
  const bytes = Uint8Array.from(atob(file.base64), (c) => c.charCodeAt(0));
  save(new Blob([bytes], { type: file.mime }), file.name);
  root.said.textContent = `${file.name} saved`;
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".n2n-export");
  root.ask = setTriggerValue;
  root.said = root.querySelector(".said");
  receive(root, data.file);
  const stamp = JSON.stringify([data.charts, data.files]);
  if (root.stamp === stamp) return;
  root.stamp = stamp;
  const size = root.querySelector("select");
  const rows = data.charts.map(({ name, title }) => {
    const row = document.createElement("div");
    row.append(Object.assign(document.createElement("span"), { textContent: title }));
    for (const format of ["svg", "pdf", "png"]) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: format.toUpperCase() });
      button.setAttribute("aria-label", `${title} as ${format.toUpperCase()}`);
      button.onclick = async () => {
        root.said.textContent = "Drawing …";
        try {
          save(await picture(name, format, Math.round(Number(size.value) * MM)), `${name}.${format}`);
          root.said.textContent = `${name}.${format} saved`;
        } catch (error) {
          root.said.textContent = `Not saved: ${error.message}`;
        }
      };
      row.append(button);
    }
    return row;
  });
  root.querySelector(".rows").replaceChildren(...rows, fileRow(root, data.files));
}
