// Puts an SVG into the page, where it follows the theme. Only what pictures are made of is let through: no scripts, no links.
const ELEMENTS = new Set(["svg", "g", "path", "rect", "circle", "line", "text", "tspan", "title", "desc", "defs", "marker", "style"]);
const SAFE_URL = /^url\(#[\w-]+\)$/;

function clean(node) {
  for (const child of [...node.children]) {
    if (ELEMENTS.has(child.localName)) clean(child);
    else child.remove();
  }
  for (const { name, value } of [...node.attributes]) {
    const leads = name.includes("href") || name.startsWith("on") || (/url\(/i.test(value) && !SAFE_URL.test(value.trim()));
    if (leads) node.removeAttribute(name);
  }
  if (node.localName === "style" && /@import|url\(/i.test(node.textContent)) node.remove();
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".n2n-drawing");
  root.setAttribute("aria-label", data.label);
  if (root.source === data.svg) return;
  root.source = data.svg;
  const parsed = new DOMParser().parseFromString(data.svg, "image/svg+xml");
  const svg = parsed.documentElement;
  if (svg.localName !== "svg" || parsed.querySelector("parsererror")) {
    root.textContent = "The picture cannot be read.";
    return;
  }
  clean(svg);
  const [, , width, height] = (svg.getAttribute("viewBox") ?? "").split(/[\s,]+/).map(Number);
  svg.removeAttribute("width");
  svg.removeAttribute("height");
  if (width) svg.style.cssText = `width:100%;max-width:${width}px;height:auto;max-height:${Math.min(height, data.height)}px`;
  root.replaceChildren(document.importNode(svg, true));
}
