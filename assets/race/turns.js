// The conversation: the turns above a panel's text, plain and without origins; what a model only thinks, folded; and how the next Run takes part in it.

const THOUGHT = /^\s*<think>([\s\S]*?)(?:<\/think>\s*|$)/;   // one that was stopped has no end

function folded(name, text, kind) {
  return el("details", { class: kind }, el("summary", {}, name), readable(text.trim()));
}

// One message of the conversation so far.
function turnNode({ role, content }) {
  if (role === "system") return folded(t("turn.system"), content, "turn system");
  if (role === "user") return el("div", { class: "turn user" }, readable(content) || t("turn.empty"));
  const [whole, thought] = content.match(THOUGHT) || ["", ""];
  const said = readable(content.slice(whole.length));
  return el("div", { class: "turn assistant" }, thought.trim() ? folded(t("turn.thought"), thought, "thought-turn") : null, said || (whole ? null : t("turn.empty")));
}

// What the model thinks before its answer, between <think> and </think>, where the answer begins with it. All of it stays among the tokens; folded, each token is a tick in its colour.
class Thought {
  constructor(text) {
    this.text = text;        // the node that holds the tokens
    this.button = el("button", { type: "button", class: "thought-toggle", "data-hint": t("turn.thought.hint") });
    this.button.addEventListener("click", () => { this.chosen = !this.folded; this.draw(); });
    this.chosen = null;      // folded or not, where the reader has said so
    this.rewind();
  }

  rewind() {
    this.begun = false;      // something other than white space has come
    this.open = false;
    this.over = false;
    this.count = 0;
    this.draw();
  }

  get folded() {
    return this.chosen ?? this.over;   // open while it is written
  }

  add(token, node) {
    const mark = token.text.trim();
    if (mark === "<think>" && !this.begun) this.open = true;
    if (mark) this.begun = true;
    if (!this.open) return;
    node.classList.add("thought");
    this.count += 1;
    this.over = mark === "</think>";
    this.open = !this.over;
  }

  draw() {
    this.button.hidden = !this.count;
    this.text.classList.toggle("folded", this.folded);
    this.button.setAttribute("aria-expanded", String(!this.folded));
    this.button.textContent = t(this.over ? "turn.thought_of" : "turn.thinking", { tokens: plural(this.count, "token") });
  }
}

// Whether the next Run adds a turn or replaces the last one. The buttons are Gradio's (ui/page.py); what they do here comes first.
class LastTurn {
  // running(): whether a race is. say(text): the sentence for the visitor.
  constructor(running, say) {
    this.say = say;
    this.again = false;
    this.editing = false;
    this.kept = "";          // what stood in the box before the last prompt came into it
    document.addEventListener("click", (event) => {
      const button = event.target.closest?.("#regenerate, #edit-last");
      if (!button) return;
      if (running()) event.stopImmediatePropagation();
      else if (button.id === "regenerate") this.again = true;
    }, true);
  }

  // "" for a new turn, else what takes the last one's place: "again", its own prompt; "edit", what is in the box.
  how() {
    const how = this.again ? "again" : this.editing ? "edit" : "";
    this.again = false;
    return how;
  }

  // Into editing, or out of it: what is asked of Python, and the text that it may put back.
  toggle(text) {
    const back = this.kept;
    if (!this.editing) this.kept = text;
    this.setEditing(!this.editing);
    this.say(this.editing ? t("turn.replaces") : t("turn.stays"));
    if (this.editing) document.querySelector("#prompt textarea").focus();
    return this.editing ? ["edit", text] : ["leave", back];
  }

  setEditing(on) {
    this.editing = on;
    document.querySelector("#edit-last")?.setAttribute("aria-pressed", String(on));
  }

  // A race of the conversation begins, or a new chat does.
  began(any) {
    this.setEditing(false);
    document.documentElement.toggleAttribute("data-turn", any);
  }
}
