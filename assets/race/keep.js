// The menu that keeps a race: as JSON lines, as a table, as one HTML file that replays itself
// without any network; and that opens such a file again.

const MOST_MEGABYTES = 64;
const HOLE = "{{RECORD}}"; // where the template of the HTML file takes the race: its first occurrence, ahead of this script

class Keep {
  // tape: the race on screen. template: the HTML file, or "" where this is that file. pictures():
  // of its charts. open(name, records): shows a race from a file. say(text): tells the visitor what
  // did not work.
  constructor(tape, template, pictures, open, say) {
    this.tape = tape;
    this.template = template;
    this.pictures = pictures;
    this.file = el("input", {
      type: "file",
      accept: ".jsonl,.json",
      class: "off-screen",
      tabindex: -1,
      "aria-label": t("keep.file"),
    });
    this.file.addEventListener("change", () => this.read(open, say));
    const button = (name, hint, act) => {
      const node = el("button", { type: "button", "data-hint": hint }, name);
      node.addEventListener("click", () => {
        this.node.open = false;
        act();
      });
      return node;
    };
    const saves = [
      button(t("keep.html"), t("keep.html.hint"), () => this.saveHtml()),
      button(t("keep.json"), t("keep.json.hint"), () =>
        this.save("jsonl", "application/jsonl", recordLines(this.tape)),
      ),
      button(t("keep.csv"), t("keep.csv.hint"), () =>
        this.save("csv", "text/csv", recordTable(this.tape)),
      ),
    ];
    const link = el("button", { type: "button", "data-hint": t("link.hint") }, t("link"));
    link.addEventListener("click", () => this.copyLink(link, say));
    this.saves = template ? [...saves, link] : saves.slice(1); // a saved file's own address is nobody else's
    const opener = button(t("keep.open"), t("keep.open.hint"), () => this.file.click());
    this.node = el(
      "details",
      { class: "keep" },
      el("summary", {}, t("keep")),
      el("div", { class: "menu" }, ...this.saves, opener),
      this.file,
    );
    this.node.addEventListener("toggle", () =>
      this.saves.forEach((save) => {
        save.disabled = !this.tape.summaries.length;
      }),
    );
    document.addEventListener("click", (event) => {
      // the page's own clicks (#take in a race, #remember after it) are no visitor's
      if (event.isTrusted && !this.node.contains(event.target)) this.node.open = false;
    });
    this.node.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.node.open) return;
      event.preventDefault();
      this.node.open = false;
      this.node.querySelector("summary").focus();
    });
  }

  save(ending, type, text) {
    const run = String(this.tape.header.run || "")
      .replace(/[^a-z0-9]/gi, "")
      .slice(0, 8);
    const link = el("a", {
      href: URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` })),
      download: `race-${run}.${ending}`,
    });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  async copyLink(button, say) {
    const link = await linkOf(this.tape);
    if (link) return copyText(link, button);
    this.node.open = false;
    say(t("link.too_long"));
  }

  async saveHtml() {
    const data = { record: recordLines(this.tape), pictures: await this.pictures() };
    this.save(
      "html",
      "text/html",
      this.template.replace(HOLE, () => JSON.stringify(data).replaceAll("<", "\\u003c")),
    );
  }

  async read(open, say) {
    const [file] = this.file.files;
    this.file.value = "";
    if (!file) return;
    try {
      if (file.size > MOST_MEGABYTES * 2 ** 20)
        throw new Error(
          t("record.too_large", { most: MOST_MEGABYTES, got: Math.round(file.size / 2 ** 20) }),
        );
      open(file.name, parseRecord(decoded(await file.arrayBuffer())));
    } catch (error) {
      say(error.message);
    }
  }
}
