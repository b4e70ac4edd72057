// Single keys act while no field has the cursor. Whoever speaks to the machine can turn them off; the browser remembers.
const OFF = "n2n-shortcuts-off";

function make(tag, text, properties) {
  return Object.assign(document.createElement(tag), { textContent: text ?? "" }, properties);
}

function list(dialog, keys) {
  const title = make("h2", "Keys", { id: "n2n-shortcuts-title" });
  const terms = document.createElement("dl");
  for (const { key, says } of keys) {
    const name = document.createElement("dt");
    name.append(make("kbd", key));
    terms.append(name, make("dd", says));
  }
  const label = document.createElement("label");
  const box = make("input", "", { type: "checkbox", checked: !localStorage.getItem(OFF) });
  box.onchange = () => (box.checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "1"));
  label.append(box, "Keys act on the page");
  const close = make("button", "Close", { type: "button", onclick: () => dialog.close() });
  dialog.setAttribute("aria-labelledby", title.id);
  dialog.replaceChildren(title, terms, label, close);
}

function move(target, by) {
  const links = [...document.querySelectorAll(`${target} tbody tr[data-id] :is(a, button.pick)`)];
  const at = links.findIndex((link) => link.closest("tr").contains(document.activeElement));
  const to = at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, at + by));
  links[to]?.focus();
}

function act(root, { does, target }) {
  const found = target ? document.querySelector(target) : null;
  if (does === "help") root.querySelector("dialog").showModal();
  else if (does === "focus") { found?.focus(); found?.select?.(); }
  else if (does === "press") found?.click();
  else if (does === "next row") move(target, 1);
  else if (does === "previous row") move(target, -1);
  else if (does === "check row") document.activeElement.closest("tr[data-id]")?.querySelector("input.one")?.click();
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".n2n-shortcuts");
  const stamp = JSON.stringify(data.keys);
  if (root.stamp !== stamp) {
    root.stamp = stamp;
    const dialog = document.createElement("dialog");
    list(dialog, data.keys);
    const button = make("button", "Keys ?", { type: "button", onclick: () => dialog.showModal() });
    button.setAttribute("aria-haspopup", "dialog");
    root.replaceChildren(button, dialog);
  }
  root.onkey ??= (event) => {
    const busy = event.target.closest?.("input:not([type=checkbox]), textarea, select, [contenteditable=true], dialog, [role=combobox]");
    if (busy || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const shortcut = JSON.parse(root.stamp).find((each) => each.key === event.key);
    if (!shortcut || (localStorage.getItem(OFF) && shortcut.does !== "help")) return;
    event.preventDefault();
    act(root, shortcut);
  };
  document.removeEventListener("keydown", root.onkey);
  document.addEventListener("keydown", root.onkey);
  return () => document.removeEventListener("keydown", root.onkey);
}
