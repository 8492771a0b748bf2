// The page's texts, in the language that Gradio chooses for its own part: the browser's first, or
// that without its region; English for whatever a translation lacks. `TEXTS`, language -> key ->
// text, comes from assets/texts/*.json (dmtd_demo/web/texts.py), and stands before this file. First
// of all files: the others ask for texts as they load.

const LANGUAGE =
  [navigator.language, navigator.language.split("-")[0]].find((tag) => Object.hasOwn(TEXTS, tag)) ||
  "en";

function textOf(key) {
  return TEXTS[LANGUAGE][key] ?? TEXTS.en[key] ?? key;
}

// values: for the places {name} of the text.
function t(key, values = {}) {
  return textOf(key).replace(/\{(\w+)\}/g, (place, name) => String(values[name] ?? place));
}

// Python writes English and says which key it was: data-t for an element's own text, with its
// values in data-values and in children that have a data-slot; data-t-hint and data-t-label for its
// hint and its name.
function translate(root) {
  const all = (mark) => [
    ...(root.matches(`[${mark}]`) ? [root] : []),
    ...root.querySelectorAll(`[${mark}]`),
  ];
  for (const node of all("data-t")) {
    const values = JSON.parse(node.dataset.values || "{}"),
      slots = Object.fromEntries([...node.children].map((child) => [child.dataset.slot, child]));
    node.replaceChildren(
      ...textOf(node.dataset.t)
        .split(/(\{\w+\})/)
        .map((part) => {
          const name = part.match(/^\{(\w+)\}$/)?.[1];
          return name ? slots[name] || String(values[name] ?? part) : part;
        }),
    );
  }
  for (const node of all("data-t-hint")) node.dataset.hint = t(node.dataset.tHint);
  for (const node of all("data-t-label")) node.setAttribute("aria-label", t(node.dataset.tLabel));
}

document.documentElement.lang = LANGUAGE;
if (LANGUAGE !== "en") {
  translate(document.body);
  // Gradio puts new English there, also into nodes that stay. The race's own texts come by t.
  const watcher = new MutationObserver((changes) => {
    for (const { target, addedNodes } of changes) {
      const node = target instanceof Element ? target : target.parentElement;
      if (!node || node.closest(".race")) continue;
      const own = node.closest("[data-t]");
      for (const each of own ? [own] : addedNodes) if (each instanceof Element) translate(each);
    }
    watcher.takeRecords(); // what was done here
  });
  watcher.observe(document.body, {
    childList: true,
    subtree: true,
    characterData: true,
    attributes: true,
    attributeFilter: ["data-t", "data-values"],
  });
}
