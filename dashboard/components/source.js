// A text to read and to copy, YAML in colours. Everything is text, nothing is read as HTML.
export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".n2n-source");
  const view = root.querySelector("pre");
  const button = root.querySelector("button");
  view.setAttribute("aria-label", data.label);
  view.style.maxHeight = data.height ? `${data.height}px` : "";
  if (root.shown !== data.text) {
    root.shown = data.text;
    const lines = data.yaml ? data.text.split("\n").map((line) => [...coloured(line), "\n"]) : [data.text];
    view.replaceChildren(...lines.flat());
  }
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(root.shown);
      button.textContent = "Copied ✓";
    } catch {
      // the browser does not let pages write there: what is selected can be copied by hand
      getSelection().selectAllChildren(view);
      return;
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2500);
  };
}
