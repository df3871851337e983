"""JavaScript that inspects the report in a browser: contrast, keyboard, names, references and verdicts."""

# Text whose contrast with its background is below WCAG AA: 4.5, or 3 for large letters.
LOW_CONTRAST = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, alpha = 1] = parse(getComputedStyle(node).backgroundColor);
      if (alpha > 0.99) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const contrast = (text, behind) => {
    const [more, less] = [light(text), light(behind)].sort((a, b) => b - a);
    return (more + .05) / (less + .05);
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), node = walker.currentNode.parentElement;
    if (!text || node.matches("script, noscript, :disabled") || !node.checkVisibility()) continue;
    const style = getComputedStyle(node), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const drawn = node.closest("svg"), ratio = contrast(parse(drawn ? style.fill : style.color), ground(node));
    if (ratio < (large ? 3 : 4.5)) found.push(`${text.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""

# The number of elements that the Tab key should reach.
FOCUSABLE = """() => [...document.querySelectorAll("a[href], button:not(:disabled), input, summary, [tabindex='0']")]
  .filter((node) => node.checkVisibility() && node.tabIndex >= 0).length"""

# Elements without an accessible name.
NAMELESS = """() => [...document.querySelectorAll("button, a, input, img, nav, section, [role]")].filter((node) =>
    !["aria-label", "aria-labelledby", "alt"].some((name) => node.getAttribute(name)) && !node.labels?.length
    && !(node.matches("button, a, [role=status]") && node.textContent.trim()))
  .map((node) => node.outerHTML.slice(0, 80))"""

# Ids that are referred to and do not exist.
DANGLING = """() => [...document.querySelectorAll("[aria-labelledby], [aria-controls], label[for], output[for], nav a")]
  .flatMap((node) => ["aria-labelledby", "aria-controls", "for", "href"].map((name) => node.getAttribute(name)))
  .filter((id) => id && !document.getElementById(id.replace("#", "")))"""

# Ids of several elements.
TWICE = """() => [...document.querySelectorAll("[id]")].map((node) => node.id)
  .filter((id, n, all) => all.indexOf(id) !== n)"""

# Key, source, reason, mark and "is kept" of the texts in view.
VERDICTS = """() => [...document.querySelectorAll(".card .main-set .text")].map((text) =>
  [text.closest(".card").querySelector(".key").textContent, text.querySelector(".source").textContent,
   text.dataset.reason, text.querySelector(".mark").textContent, text.classList.contains("kept")])"""
