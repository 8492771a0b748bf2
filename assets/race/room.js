// How high the texts of the panels are: as high as leaves the legend, the status and the player on
// screen, without scrolling; the box for a reply too, where that leaves enough lines.

const LEAST_TEXT = 104; // px, some four lines
const ENOUGH_TEXT = 150; // px, some six lines: more of them need no more than a reply does
const MOST_TEXT = 0.5; // of the window
const WIDE = matchMedia("(min-width: 901px)"); // the panels stand side by side
const NARROW = 345; // px of a panel: labels get smaller
const BELOW = 10; // px under the last of them
const ABOVE_REPLY = 10; // px, as in assets/style/ask.css

class Room {
  // view: the race view.
  constructor(view) {
    this.view = view;
    this.fitted = ""; // what the heights were last found for
    const sizes = new ResizeObserver(() => this.refit());
    for (const node of [document.body, view.root, view.bar]) sizes.observe(node); // what stands above comes when it likes
    window.addEventListener("resize", () => this.fit());
  }

  // What is below the bar may be as high as it likes: most of what a race changes is there.
  refit() {
    if (this.sizes() !== this.fitted) this.fit();
  }

  // All that the heights are found from.
  sizes() {
    const { grid, panels, bar, reply } = this.view,
      { left, top, right, bottom } = grid.getBoundingClientRect();
    return [
      window.innerWidth,
      window.innerHeight,
      right - left,
      top + window.scrollY,
      bar.getBoundingClientRect().bottom - bottom,
      reply.node.offsetHeight,
      reply.written,
      ...panels.flatMap(({ node, scroll }) => [
        node.offsetTop,
        node.offsetHeight,
        scroll.offsetHeight,
      ]),
    ].join();
  }

  fit() {
    const { grid, panels, bar, reply } = this.view;
    if (!panels.length || !grid.offsetHeight) return;
    document.documentElement.toggleAttribute(
      "data-narrow",
      panels.length > 1 &&
        grid.offsetWidth / panels.length < NARROW &&
        panels[1].node.offsetTop === panels[0].node.offsetTop,
    );
    this.alignHeads();
    const around = Math.max(
      ...panels
        .filter((panel) => panel.node.offsetHeight)
        .map((panel) => panel.node.offsetHeight - panel.scroll.offsetHeight),
      0,
    );
    const under = bar.getBoundingClientRect().bottom - grid.getBoundingClientRect().bottom;
    let height =
      window.innerHeight -
      (grid.getBoundingClientRect().top + window.scrollY) -
      around -
      under -
      BELOW;
    const row = reply.node.offsetHeight && reply.node.offsetHeight + ABOVE_REPLY,
      there = row > 0 && (reply.written || height - row >= ENOUGH_TEXT);
    if (there) height -= row;
    document.documentElement.toggleAttribute("data-reply-away", WIDE.matches && row > 0 && !there);
    const atEnd = panels.filter((panel) => panel.atEnd);
    // of the grid: all that stands below the race view has no use for it
    grid.style.setProperty(
      "--room",
      `${Math.round(Math.min(Math.max(height, LEAST_TEXT), MOST_TEXT * window.innerHeight))}px`,
    );
    for (const panel of atEnd) panel.scroll.scrollTop = panel.scroll.scrollHeight;
    this.fitted = this.sizes();
  }

  // Panels side by side: two lines above the text of one of them move no text. The head of one whose
  // speed means nothing takes the place of what it does, too.
  alignHeads() {
    const { panels } = this.view,
      heads = panels.flatMap(({ node }) => [...node.querySelectorAll(".panel-head, .how")]);
    const set = (part, height) => {
      // of each head: of all around it, every token would be styled anew
      for (const head of heads) head.style.setProperty(`--${part}`, height);
    };
    for (const part of ["panel-head", "how", "whole-head"]) set(part, null);
    if (!WIDE.matches) return;
    const highest = (part, weightless) =>
      Math.max(
        0,
        ...panels
          .filter((panel) => panel.node.classList.contains("weightless") === weightless)
          .map((panel) => panel.node.querySelector(`.${part}`).offsetHeight),
      );
    const how = highest("how", false),
      whole = Math.max(highest("panel-head", false) + how, highest("panel-head", true));
    set("panel-head", `${whole - how}px`);
    set("how", `${how}px`);
    set("whole-head", `${whole}px`);
  }

  // The box for a reply comes on screen, ready to be written in.
  toReply() {
    const { reply } = this.view;
    reply.box.focus({ preventScroll: true });
    this.fit();
    reply.node.scrollIntoView({ block: "nearest" });
  }
}
