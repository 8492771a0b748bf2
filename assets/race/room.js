// How high the texts of the panels are: as high as leaves the legend, the status and the player on
// screen, without scrolling.

const LEAST_TEXT = 104; // px, some four lines
const MOST_TEXT = 0.5; // of the window
const NARROW = 345; // px of a panel: labels get smaller
const BELOW = 10; // px under the last of them

class Room {
  // view: the race view.
  constructor(view) {
    this.view = view;
    const sizes = new ResizeObserver(() => this.fit());
    for (const node of [document.body, view.root, view.bar]) sizes.observe(node); // what stands above comes when it likes
    window.addEventListener("resize", () => this.fit());
  }

  fit() {
    const { grid, panels, root, bar } = this.view;
    if (!panels.length || !grid.offsetHeight) return;
    document.documentElement.toggleAttribute(
      "data-narrow",
      panels.length > 1 &&
        grid.offsetWidth / panels.length < NARROW &&
        panels[1].node.offsetTop === panels[0].node.offsetTop,
    );
    const around = Math.max(
      ...panels
        .filter((panel) => panel.node.offsetHeight)
        .map((panel) => panel.node.offsetHeight - panel.scroll.offsetHeight),
      0,
    );
    const under = bar.getBoundingClientRect().bottom - grid.getBoundingClientRect().bottom;
    const height =
      window.innerHeight -
      (grid.getBoundingClientRect().top + window.scrollY) -
      around -
      under -
      BELOW;
    const atEnd = panels.filter((panel) => panel.atEnd);
    root.style.setProperty(
      "--room",
      `${Math.round(Math.min(Math.max(height, LEAST_TEXT), MOST_TEXT * window.innerHeight))}px`,
    );
    for (const panel of atEnd) panel.scroll.scrollTop = panel.scroll.scrollHeight;
  }
}
