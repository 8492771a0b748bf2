// Going on with the chat: the box under the texts, and the two buttons that put something in the
// last turn's place. Run itself begins anew. Gradio hears of it by a hidden button (ui/page.py),
// whose values then have the reply for a prompt.

class Reply {
  // tape: the race on screen. running(): whether one runs. say(text): the sentence for the visitor.
  constructor(tape, running, say) {
    this.tape = tape;
    this.running = running;
    this.say = say;
    this.asked = ""; // what the next start is asked for, where it is not Run
    this.editing = false;
    this.kept = ""; // what stood in the box before the last prompt came into it
    const button = (id, name, hint, act) => {
      const node = el("button", { type: "button", id, "data-hint": hint }, name);
      // the box is high while it is written in: left under a press, it would move the button away
      node.addEventListener("mousedown", (event) => event.preventDefault());
      node.addEventListener("click", () => {
        this.box.blur();
        act();
      });
      return node;
    };
    this.box = el("textarea", {
      rows: 1,
      dir: "auto",
      placeholder: t("reply.placeholder"),
      "aria-label": t("reply.placeholder"),
    });
    this.box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      this.send(this.editing ? "edit" : "reply");
    });
    this.edit = button("edit-last", t("reply.edit"), t("reply.edit.hint"), () => this.toggle());
    this.buttons = [
      button("reply", t("reply"), t("reply.hint"), () =>
        this.send(this.editing ? "edit" : "reply"),
      ),
      button("regenerate", t("reply.again"), t("reply.again.hint"), () => this.send("again")),
      this.edit,
    ];
    this.node = el(
      "div",
      { class: "reply-row", role: "group", "aria-label": t("reply") },
      el("div", { id: "reply-text" }, this.box),
      ...this.buttons,
    );
    document.addEventListener(
      "click",
      (event) => {
        if (event.target.closest?.("#run")) this.asked = "";
      },
      true,
    );
  }

  send(how) {
    if (this.running()) return;
    this.asked = how;
    document.querySelector("#go-on").click();
  }

  // What this start is asked for, and the values of the controls with the reply in the prompt's
  // place.
  take(values) {
    const how = this.asked;
    this.asked = "";
    return [how, how ? [how === "again" ? this.last : this.box.value, ...values.slice(1)] : values];
  }

  // Whether somebody writes, or has begun to.
  get written() {
    return this.box.value !== "" || this.box === document.activeElement;
  }

  get last() {
    return this.tape.turns[0]?.at(-1)?.content || "";
  }

  toggle() {
    if (this.running()) return;
    [this.kept, this.box.value] = this.editing ? ["", this.kept] : [this.box.value, this.last];
    this.setEditing(!this.editing);
    this.say(this.editing ? t("turn.replaces") : t("turn.stays"));
    if (this.editing) this.box.focus();
  }

  setEditing(on) {
    this.editing = on;
    this.edit.setAttribute("aria-pressed", String(on));
  }

  // A race begins, asked for so, or the chat is empty (null).
  began(how) {
    if (how === "edit") this.box.value = this.kept;
    if (how === "reply" || how === null) this.box.value = "";
    if (how !== "again") this.setEditing(false);
    document.documentElement.toggleAttribute(
      "data-turn",
      how !== null && document.querySelector("#go-on") !== null,
    );
  }

  setRunning(running) {
    for (const button of this.buttons) button.setAttribute("aria-disabled", String(running));
  }
}
