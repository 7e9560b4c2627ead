// What folds and boxes need beyond the theme: names, stops for the Tab key, and open folds on paper.
document.addEventListener("DOMContentLoaded", () => {
  // A fold is named by its title, a solution by its exercise too; aria-expanded says whether it is open.
  const words = (title) => (title ? title.textContent.trim().replace(/\s+/g, " ") : "");
  let exercise = "";
  for (const box of document.querySelectorAll("article .admonition")) {
    const title = box.querySelector(":scope > .admonition-title");
    const button = title && title.querySelector("button.toggle-button");
    if (box.classList.contains("exercise")) exercise = words(title);
    if (!button || !words(title)) continue;
    const solves = box.classList.contains("solution") && exercise;
    button.setAttribute("aria-label", solves ? `${words(title)}: ${exercise}` : words(title));
  }

  // What scrolls sideways can be reached by keyboard. The theme sees to `pre` when a page is loaded or resized, so it
  // is told of a resize whenever a fold opens; what the theme does not know is seen to here.
  const boxes = ".cell_output, .explore, .cell_output table, span.math, div.math mjx-container";
  const stops = () => {
    for (const box of document.querySelectorAll(boxes)) {
      const style = getComputedStyle(box);
      const scrolls = (overflow, inner, outer) => /auto|scroll/.test(overflow) && inner > outer + 1;
      if (
        scrolls(style.overflowX, box.scrollWidth, box.clientWidth) ||
        scrolls(style.overflowY, box.scrollHeight, box.clientHeight)
      ) {
        box.tabIndex = 0;
      } else {
        box.removeAttribute("tabindex");
      }
    }
  };
  const opened = () => window.dispatchEvent(new Event("resize"));
  window.addEventListener("resize", stops);
  document.addEventListener("toggle", opened, true);
  document.addEventListener("click", (event) => {
    if (event.target.closest(".admonition-title, .toggle-button")) setTimeout(opened);
  });
  const loaded = new Promise((done) => window.addEventListener("load", done));
  loaded
    .then(() => window.MathJax && MathJax.startup && MathJax.startup.promise)
    .then(() => document.fonts.ready)
    .then(stops);

  // On paper every fold is open, but for the code that draws a figure, and letters are dark.
  const root = document.documentElement.dataset;
  let closed = [];
  let theme;
  window.addEventListener("beforeprint", () => {
    theme = root.theme;
    root.theme = "light";
    closed = [...document.querySelectorAll("article details:not([open])")].filter(
      (fold) => !fold.classList.contains("above-input"),
    );
    for (const fold of closed) fold.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const fold of closed) fold.open = false;
    root.theme = theme;
  });
});
