// The end of a log, as text. It follows the end unless the reader has scrolled up; what is selected stays selected.
export default function ({ data, parentElement }) {
  const view = parentElement.querySelector("pre");
  view.setAttribute("aria-label", data.label);
  const atEnd = view.scrollHeight - view.scrollTop - view.clientHeight < 40;
  const shown = view.textContent;
  if (shown === data.text) return;
  if (shown && data.text.startsWith(shown)) view.append(data.text.slice(shown.length));
  else view.textContent = data.text;
  if (atEnd || !shown) view.scrollTop = view.scrollHeight;
}
