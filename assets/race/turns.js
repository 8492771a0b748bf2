// The conversation: the turns above a panel's text, plain and without origins; what a model only
// thinks, folded.

const THOUGHT = /^\s*<think>([\s\S]*?)(?:<\/think>\s*|$)/; // one that was stopped has no end

function folded(name, text, kind) {
  return el(
    "details",
    { class: kind },
    el("summary", { translate: "yes" }, name),
    el("div", WRITTEN, readable(text.trim())),
  );
}

// One message of the conversation so far.
function turnNode({ role, content }) {
  if (role === "system") return folded(t("turn.system"), content, "turn system");
  if (role === "user")
    return el("div", { class: "turn user", ...WRITTEN }, readable(content) || t("turn.empty"));
  const [whole, thought] = content.match(THOUGHT) || ["", ""];
  const said = readable(content.slice(whole.length));
  return el(
    "div",
    { class: "turn assistant", ...WRITTEN },
    thought.trim() ? folded(t("turn.thought"), thought, "thought-turn") : null,
    said || (whole ? null : t("turn.empty")),
  );
}

// What the model thinks before its answer, between <think> and </think>, where the answer begins
// with it. All of it stays among the tokens; folded, each token is a tick in its colour. A server
// whose template opens the thought sends the closing mark alone: all before it is the thought.
class Thought {
  constructor(text) {
    this.text = text; // the node that holds the tokens
    this.button = el("button", {
      type: "button",
      class: "thought-toggle",
      "data-hint": t("turn.thought.hint"),
    });
    this.button.addEventListener("click", () => {
      this.chosen = !this.folded;
      this.draw();
    });
    this.chosen = null; // folded or not, where the reader has said so
    this.rewind();
  }

  rewind() {
    this.begun = false; // something other than white space has come
    this.open = false;
    this.over = false;
    this.count = 0;
    this.draw();
  }

  get folded() {
    return this.chosen ?? this.over; // open while it is written
  }

  // The length of the token's text that belongs to the thought.
  add(token, node) {
    const mark = token.text.trim();
    if (mark.startsWith("<think>") && !this.begun) this.open = true;
    if (mark) this.begun = true;
    const end = token.text.indexOf("</think>");
    if (!this.open && !this.over && end >= 0) {
      for (const earlier of this.text.children) earlier.classList.add("thought");
      this.count = this.text.children.length;
      this.open = true;
    }
    if (!this.open) return 0;
    this.count += 1;
    this.over = end >= 0;
    this.open = !this.over;
    const length = this.over ? end + "</think>".length : token.text.length;
    if (!token.text.slice(length).trim()) node.classList.add("thought");
    return length;
  }

  draw() {
    this.button.hidden = !this.count;
    this.text.classList.toggle("folded", this.folded);
    this.button.setAttribute("aria-expanded", String(!this.folded));
    this.button.textContent = t(this.over ? "turn.thought_of" : "turn.thinking", {
      tokens: plural(this.count, "token"),
    });
  }
}
