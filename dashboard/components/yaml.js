// Lines of YAML in colours, for the editor and for what is only read. Everything is text, nothing is read as HTML.
const LONGEST = 2000; // characters of a line beyond which it is painted without colours
const TOKEN = /((?<=^|\s)#.*$)|("(?:[^"\\]|\\.)*"|'[^']*')|([A-Za-z_$][\w.$-]*)(?=\s*:(?:\s|$))|(?<![\w.])([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w)|true|false|null)\b/g;
const CLASSES = ["comment", "string", "key", "value"];

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

// The pieces of a line: text, and spans with a class where there is a colour.
function coloured(line) {
  if (line.length > LONGEST) return [line];
  const pieces = [];
  let end = 0;
  for (const match of line.matchAll(TOKEN)) {
    const kind = match.slice(1).findIndex((part) => part !== undefined);
    pieces.push(line.slice(end, match.index), element("span", CLASSES[kind], match[0]));
    end = match.index + match[0].length;
  }
  return [...pieces, line.slice(end)];
}
