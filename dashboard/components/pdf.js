// A figure's SVG as a PDF of vectors and text, in the browser. It knows what Plotly draws: groups, paths, rectangles, text,
// clips to rectangles. Text is Helvetica, which every reader has; what that cannot write goes in as a picture.
const PT = 0.75; // points in a CSS pixel
const SHARP = 4; // pixels of such a picture in a CSS pixel
const SYMBOL = { "α": "a", "β": "b", "γ": "g", "−": "-", "≤": "\xa3", "≥": "\xb3", "∞": "\xa5", "→": "\xae", "Δ": "D", "━": "\xbe", "╍": "-" };
const WIN = new Map([...new TextDecoder("windows-1252").decode(Uint8Array.from({ length: 224 }, (_, i) => i + 32))].map((c, i) => [c, i + 32]));

// of Helvetica, in thousandths, from the blank on
const WIDTHS = [278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, ...Array(10).fill(556), 278, 278, 584, 584, 584,
  556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611,
  278, 278, 278, 469, 556, 333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500,
  722, 500, 500, 500, 334, 260, 334, 584];

const num = (v) => String(Math.round(v * 1000) / 1000);
const nums = (...values) => values.map(num).join(" ");

function colour(text, opacity) {
  const parts = text.match(/[\d.]+/g);
  if (text === "none" || !parts) return null;
  const [r, g, b, a = 1] = parts.map(Number);
  return { rgb: nums(r / 255, g / 255, b / 255), alpha: a * opacity };
}

// An elliptical arc as cubic curves; see the implementation notes of SVG 1.1, F.6.
function arc(x0, y0, [rx, ry, turn, large, sweep, x, y]) {
  if (!rx || !ry || (x0 === x && y0 === y)) return [[x0, y0, x, y, x, y]];
  const [cos, sin] = [Math.cos((turn * Math.PI) / 180), Math.sin((turn * Math.PI) / 180)];
  const [dx, dy] = [(x0 - x) / 2, (y0 - y) / 2];
  const [px, py] = [cos * dx + sin * dy, cos * dy - sin * dx];
  const grow = Math.max(1, Math.sqrt((px / rx) ** 2 + (py / ry) ** 2));
  rx = Math.abs(rx) * grow;
  ry = Math.abs(ry) * grow;
  const rest = (rx * ry) ** 2 - (rx * py) ** 2 - (ry * px) ** 2;
  const k = (large === sweep ? -1 : 1) * Math.sqrt(Math.max(0, rest) / ((rx * py) ** 2 + (ry * px) ** 2));
  const [qx, qy] = [(k * rx * py) / ry, (-k * ry * px) / rx];
  const [cx, cy] = [cos * qx - sin * qy + (x0 + x) / 2, sin * qx + cos * qy + (y0 + y) / 2];
  const start = Math.atan2((py - qy) / ry, (px - qx) / rx);
  let span = Math.atan2((-py - qy) / ry, (-px - qx) / rx) - start;
  if (sweep && span < 0) span += 2 * Math.PI;
  if (!sweep && span > 0) span -= 2 * Math.PI;
  const count = Math.ceil(Math.abs(span) / (Math.PI / 2) - 1e-6);
  const h = (4 / 3) * Math.tan(span / count / 4);
  const at = (u, v) => [cos * rx * u - sin * ry * v + cx, sin * rx * u + cos * ry * v + cy];
  return Array.from({ length: count }, (_, i) => {
    const [a, b] = [start + (span * i) / count, start + (span * (i + 1)) / count];
    return [
      ...at(Math.cos(a) - h * Math.sin(a), Math.sin(a) + h * Math.cos(a)),
      ...at(Math.cos(b) + h * Math.sin(b), Math.sin(b) - h * Math.cos(b)),
      ...at(Math.cos(b), Math.sin(b)),
    ];
  });
}

const ARITY = { M: 2, L: 2, H: 1, V: 1, C: 6, S: 4, Q: 4, A: 7, Z: 0 };

function outline(d) {
  const out = [];
  let [x, y, sx, sy, lx, ly] = [0, 0, 0, 0, 0, 0];
  const curve = (a, b, c, e, f, g) => { out.push(`${nums(a, b, c, e, f, g)} c`); [lx, ly, x, y] = [c, e, f, g]; };
  for (const [, letter, rest] of d.matchAll(/([MLHVCSQAZ])([^MLHVCSQAZ]*)/gi)) {
    const values = (rest.match(/[-+]?(?:\d*\.\d+|\d+\.?)(?:e[-+]?\d+)?/gi) ?? []).map(Number);
    const kind = letter.toUpperCase();
    const relative = letter !== kind;
    const size = ARITY[kind];
    for (let i = 0; i === 0 || i < values.length; i += size || 1) {
      const v = values.slice(i, i + size);
      if (v.length < size) break;
      const [ox, oy] = relative ? [x, y] : [0, 0];
      if (kind === "A") { v[5] += ox; v[6] += oy; }
      else if (kind === "H") v[0] += ox;
      else if (kind === "V") v[0] += oy;
      else v.forEach((_, j) => { v[j] += j % 2 ? oy : ox; });
      if (kind === "M" && i === 0) { [x, y] = v; [sx, sy] = v; out.push(`${nums(x, y)} m`); }
      else if (kind === "M" || kind === "L") { [x, y] = v; out.push(`${nums(x, y)} l`); }
      else if (kind === "H") { [x] = v; out.push(`${nums(x, y)} l`); }
      else if (kind === "V") { [y] = v; out.push(`${nums(x, y)} l`); }
      else if (kind === "C") curve(...v);
      else if (kind === "S") curve(2 * x - lx, 2 * y - ly, ...v);
      else if (kind === "Q") curve(x + (2 / 3) * (v[0] - x), y + (2 / 3) * (v[1] - y), v[2] + (2 / 3) * (v[0] - v[2]), v[3] + (2 / 3) * (v[1] - v[3]), v[2], v[3]);
      else if (kind === "A") for (const piece of arc(x, y, v)) curve(...piece);
      else if (kind === "Z") { out.push("h"); [x, y] = [sx, sy]; }
      if (kind !== "C" && kind !== "S") [lx, ly] = [x, y];
    }
  }
  return out.join("\n");
}

class Sheet {
  constructor() {
    this.lines = [];
    this.alphas = new Map();
    this.pictures = [];
  }

  alpha(fill, stroke) {
    const key = `${num(fill)} ${num(stroke)}`;
    if (!this.alphas.has(key)) this.alphas.set(key, `G${this.alphas.size}`);
    this.lines.push(`/${this.alphas.get(key)} gs`);
  }

  // Fill and stroke what `path` builds.
  paint(path, style, opacity) {
    const fill = colour(style.fill, Number(style.fillOpacity) * opacity);
    const width = parseFloat(style.strokeWidth);
    const stroke = width > 0 ? colour(style.stroke, Number(style.strokeOpacity) * opacity) : null;
    const [fills, strokes] = [fill && fill.alpha > 0, stroke && stroke.alpha > 0];
    if (!path || (!fills && !strokes)) return;
    this.alpha(fill?.alpha ?? 1, stroke?.alpha ?? 1);
    if (fills) this.lines.push(`${fill.rgb} rg`);
    if (strokes) {
      const dashes = (style.strokeDasharray.match(/[\d.]+/g) ?? []).map(Number);
      this.lines.push(`${stroke.rgb} RG ${num(width)} w 1 j [${dashes.map(num).join(" ")}] 0 d`);
    }
    this.lines.push(path, fills && strokes ? "B" : fills ? "f" : "S");
  }

  text(element, opacity) {
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    const pieces = [];
    let at = 0;
    while (walker.nextNode()) {
      const words = walker.currentNode.data;
      const style = getComputedStyle(walker.currentNode.parentElement);
      const ink = colour(style.fill, Number(style.fillOpacity) * opacity);
      if (words && ink && at < element.getNumberOfChars()) pieces.push(...this.pieces(element, [...words], at, style, ink));
      at += words.length;
    }
    if (!pieces.length) return;
    // Helvetica may be narrower than the font of the screen: what is centred or ends somewhere still does
    if (!element.querySelector("tspan.line")) {
      const share = { middle: 0.5, end: 1 }[getComputedStyle(element).textAnchor] ?? 0;
      let x = pieces[0].x + share * pieces.reduce((sum, piece) => sum + piece.length - piece.width, 0);
      for (const piece of pieces) { piece.x = x; x += piece.width; }
    }
    for (const { text, font, size, ink, x, y, length, style } of pieces) {
      this.alpha(ink.alpha, ink.alpha);
      if (font) this.lines.push(`BT ${ink.rgb} rg /${font} ${num(size)} Tf 1 0 0 -1 ${nums(x, y)} Tm (${text}) Tj ET`);
      else this.picture(text, x, y, length, size, style);
    }
  }

  // Characters of one style, in pieces of one font. `start` counts UTF-16 units, as SVG does.
  pieces(element, chars, start, style, ink) {
    const size = parseFloat(style.fontSize);
    const bold = Number(style.fontWeight) >= 600;
    const fontOf = (c) => (WIN.has(c) ? (bold ? "F2" : "F1") : c in SYMBOL ? "F3" : null);
    const found = [];
    let at = start;
    for (let i = 0, j; i < chars.length; i = j) {
      const font = fontOf(chars[i]);
      for (j = i + 1; j < chars.length && fontOf(chars[j]) === font; j++);
      const some = chars.slice(i, j);
      const plain = some.join("");
      const { x, y } = element.getStartPositionOfChar(at);
      const length = element.getSubStringLength(at, plain.length);
      at += plain.length;
      const bytes = some.map((c) => (font === "F3" ? SYMBOL[c] : String.fromCharCode(WIN.get(c) ?? 63)));
      const text = font ? bytes.join("").replace(/[\\()]/g, "\\$&") : plain;
      const width = font ? (size * some.reduce((sum, c) => sum + (WIDTHS[c.charCodeAt(0) - 32] ?? 556), 0) * (bold ? 1.05 : 1)) / 1000 : length;
      found.push({ text, font, size, ink, x, y, length, width, style });
    }
    return found;
  }

  picture(text, x, y, length, size, style) {
    const canvas = document.createElement("canvas");
    const [width, height] = [Math.ceil(length * SHARP) + 2, Math.ceil(1.6 * size * SHARP)];
    Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.font = `${style.fontWeight} ${size * SHARP}px ${style.fontFamily}`;
    pen.fillStyle = style.fill;
    pen.fillText(text, 0, 1.2 * size * SHARP);
    const { data } = pen.getImageData(0, 0, width, height);
    const [rgb, mask] = [new Uint8Array(width * height * 3), new Uint8Array(width * height)];
    for (let i = 0; i < mask.length; i++) {
      rgb.set(data.subarray(4 * i, 4 * i + 3), 3 * i);
      mask[i] = data[4 * i + 3];
    }
    const [w, h] = [width / SHARP, height / SHARP];
    this.lines.push(`q ${nums(w, 0, 0, -h, x, y + h - 1.2 * size)} cm /X${this.pictures.length} Do Q`);
    this.pictures.push({ width, height, rgb, mask });
  }

  walk(element, opacity) {
    const style = getComputedStyle(element);
    const tag = element.localName;
    if (style.display === "none" || style.visibility === "hidden" || !["svg", "g", "path", "rect", "text"].includes(tag)) return;
    const seen = opacity * Number(style.opacity);
    if (seen === 0) return;
    this.lines.push("q");
    const matrix = element.transform?.baseVal.consolidate()?.matrix;
    if (matrix && tag !== "svg") this.lines.push(`${nums(matrix.a, matrix.b, matrix.c, matrix.d, matrix.e, matrix.f)} cm`);
    const clip = style.clipPath?.match(/#([^"')]+)/)?.[1];
    const frame = clip && element.ownerSVGElement?.querySelector(`[id="${CSS.escape(clip)}"] rect`);
    const box = (rect) => nums(...["x", "y", "width", "height"].map((name) => rect[name].baseVal.value));
    if (frame) this.lines.push(`${box(frame)} re W n`);
    if (tag === "path") this.paint(outline(element.getAttribute("d") ?? ""), style, seen);
    else if (tag === "rect") this.paint(`${box(element)} re`, style, seen);
    else if (tag === "text") this.text(element, seen);
    else for (const child of element.children) this.walk(child, seen);
    this.lines.push("Q");
  }
}

const latin = (text) => Uint8Array.from(text, (c) => c.charCodeAt(0) & 255);

async function deflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The PDF of an SVG element that is in the document, `width` by `height` CSS pixels.
async function pdfOf(svg, width, height) {
  const sheet = new Sheet();
  sheet.walk(svg, 1);
  const objects = [];
  const add = (body) => objects.push(body);
  const stream = async (head, bytes) => {
    const data = await deflated(bytes);
    return add([`<< ${head} /Filter /FlateDecode /Length ${data.length} >>\nstream\n`, data, "\nendstream"]);
  };
  add(["<< /Type /Catalog /Pages 2 0 R >>"]);
  add(["<< /Type /Pages /Kids [3 0 R] /Count 1 >>"]);
  add([]); // the page, which names what follows
  const content = await stream("", latin(`${nums(PT, 0, 0, -PT, 0, height * PT)} cm\n${sheet.lines.join("\n")}`));
  const fonts = ["Helvetica", "Helvetica-Bold", "Symbol"].map((name, i) => {
    const encoding = name === "Symbol" ? "" : " /Encoding /WinAnsiEncoding";
    return `/F${i + 1} ${add([`<< /Type /Font /Subtype /Type1 /BaseFont /${name}${encoding} >>`])} 0 R`;
  });
  const states = [...sheet.alphas].map(([key, name]) => {
    const [fill, stroke] = key.split(" ");
    return `/${name} << /ca ${fill} /CA ${stroke} >>`;
  });
  const pictures = [];
  for (const [i, { width: w, height: h, rgb, mask }] of sheet.pictures.entries()) {
    const head = `/Type /XObject /Subtype /Image /Width ${w} /Height ${h} /BitsPerComponent 8 /ColorSpace`;
    const soft = await stream(`${head} /DeviceGray`, mask);
    pictures.push(`/X${i} ${await stream(`${head} /DeviceRGB /SMask ${soft} 0 R`, rgb)} 0 R`);
  }
  const resources = `/Font << ${fonts.join(" ")} >> /ExtGState << ${states.join(" ")} >> /XObject << ${pictures.join(" ")} >>`;
  objects[2] = [`<< /Type /Page /Parent 2 0 R /MediaBox [0 0 ${nums(width * PT, height * PT)}] /Resources << ${resources} >> /Contents ${content} 0 R >>`];
  const pieces = [latin("%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")];
  const offsets = [];
  let length = pieces[0].length;
  const write = (piece) => { const bytes = typeof piece === "string" ? latin(piece) : piece; pieces.push(bytes); length += bytes.length; };
  objects.forEach((body, i) => {
    offsets.push(length);
    [`${i + 1} 0 obj\n`, ...body, "\nendobj\n"].forEach(write);
  });
  const start = length;
  write(`xref\n0 ${objects.length + 1}\n0000000000 65535 f \n`);
  for (const offset of offsets) write(`${String(offset).padStart(10, "0")} 00000 n \n`);
  write(`trailer\n<< /Size ${objects.length + 1} /Root 1 0 R >>\nstartxref\n${start}\n%%EOF\n`);
  return new Blob(pieces, { type: "application/pdf" });
}
