"use strict";
// Names and helpers that all scripts use: the report's data, elements, numbers as text.
// Texts of the data set are written as text nodes, never as markup.

const REPORT = JSON.parse(document.getElementById("data").textContent);
const DATASETS = REPORT.datasets;
const MAIN = DATASETS[0];
const SVG = "http://www.w3.org/2000/svg";
// Name and description of each score column; clip2, clip3, ... are further CLIP models.
const SCORES = {
  mix: ["Mix", "probability that the text is right, computed from all other scores"],
  itm: ["ITM", "probability that picture and text match; the filter's threshold applies to it"],
  itm_min: ["ITM, lowest sentence", "lowest probability that a sentence of the text matches"],
  itm_mean: ["ITM, mean of sentences", "mean probability that a sentence of the text matches"],
  itc: ["ITC", "cosine of BLIP's image and text features"],
  clip: ["CLIP", "cosine of CLIP's image and text features"],
};

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
// Create an HTML or SVG element; strings among the children become text nodes.
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const count = (number) => number.toLocaleString("en-US");
const percent = (share, digits = 1) => (share === null || Number.isNaN(share) ? "–" : `${(100 * share).toFixed(digits)}%`);
const ratio = (part, total) => (total ? part / total : null);
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
const decimals = (value, digits) => (value === null ? "–" : value.toFixed(digits));
const isWeb = (source) => source === "web";
const sourceTitle = (source) => (isWeb(source) ? "Web" : source);
// Quote a word for a POSIX shell.
const quote = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${String(word).replaceAll("'", "'\\''")}'`);
const scoreTitle = (name) => SCORES[name]?.[0] ?? name;

// A section of the page, with its entry in the table of contents.
function section(id, name, intro, ...content) {
  document.getElementById("toc").append(h("li", {}, h("a", { href: `#${id}` }, name)));
  const title = id === "overview" ? DATASETS.map((data) => data.name).join(" and ") : name;
  const heading = h(document.querySelector("h1") ? "h2" : "h1", { id: `${id}-h` }, title);
  return h("section", { id, "aria-labelledby": `${id}-h` }, heading, intro ? h("p", { class: "intro" }, intro) : null, ...content);
}

// One column per data set; each is titled if there are several.
function columns(draw, heading = "h3") {
  const several = DATASETS.length > 1;
  return h("div", { class: several ? "columns several" : "columns" }, DATASETS.map((data) => {
    const column = h("div", {}, several ? h(heading, { class: "set-name" }, data.name) : null, draw(data));
    if (several) column.querySelectorAll("[role=region]").forEach((region) => { region.ariaLabel = `${data.name}: ${region.ariaLabel}`; });
    return column;
  }));
}

// A table; a cell may be a pair [value to sort by, content].
function table({ caption, head, rows, sortable, hideCaption }) {
  const body = h("tbody", {});
  const headers = head.map((name) => h("th", { scope: "col" }, name));
  const content = (cell) => (cell instanceof Array ? cell[1] : cell);
  const show = (order) => body.replaceChildren(...order.map((row) =>
    h("tr", {}, row.map((cell, n) => h(n ? "td" : "th", n ? {} : { scope: "row" }, content(cell))))));
  if (sortable) {
    headers.forEach((header, n) => {
      const sort = () => {
        const descending = header.getAttribute("aria-sort") ? header.getAttribute("aria-sort") !== "descending" : n > 0;
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const value = (row) => (row[n] instanceof Array ? row[n][0] : row[n]);
        const sign = descending ? -1 : 1;
        show([...rows].sort((a, b) => sign * (n ? value(a) - value(b) : String(value(a)).localeCompare(value(b)))));
      };
      header.replaceChildren(h("button", { type: "button", onclick: sort }, head[n]));
    });
  }
  show(rows);
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: hideCaption ? "hidden" : null }, caption), h("thead", {}, h("tr", {}, headers)), body));
}

function enableThemeButton() {
  const button = document.getElementById("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const setLabel = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; setLabel(); });
  dark.addEventListener("change", setLabel);
  setLabel();
}
