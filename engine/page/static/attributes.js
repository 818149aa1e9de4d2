// A row for every attribute: a slider, its value, which sets it back, and a lock, which keeps the attribute as it is.

export const RANGE = 3;
const STEP = 0.05;
const MANY = 24;

const LOCK = `<svg viewBox="0 0 20 20" aria-hidden="true">
  <path class="bow" d="M6.8 9V6.5a3.2 3.2 0 0 1 6.4 0V9"/><rect class="body" x="5" y="9" width="10" height="7.5" rx="2"/>
</svg>`;

export function labelOf(name) {
  const words = name.replaceAll("_", " ").toLowerCase();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export function signed(value) {
  return `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(2)}`;
}

// Fills a slider's line from its origin to its thumb.
export function fill(input, origin) {
  const share = (value) => (value - input.min) / (input.max - input.min);
  const at = share(Number(input.value));
  const from = share(origin);
  input.style.setProperty("--from", `${100 * Math.min(at, from)}%`);
  input.style.setProperty("--to", `${100 * Math.max(at, from)}%`);
}

export class Attributes {
  #rows = new Map();
  #list = document.getElementById("rows");
  #find = document.getElementById("find");
  #reset = document.getElementById("reset");
  #scale = document.getElementById("scale");
  #none = document.getElementById("none");

  // changed(event): strengths or keeps are others now.
  constructor(changed) {
    this.changed = changed;
    this.strengths = {};
    this.keep = new Set();
    this.#reset.addEventListener("click", (event) => this.set({}, [], event));
    this.#find.addEventListener("input", () => {
      const wanted = this.#find.value.trim().toLowerCase();
      for (const [name, row] of this.#rows) row.root.hidden = !labelOf(name).toLowerCase().includes(wanted);
    });
  }

  // The attributes of a model; what was set of those that it has stays set.
  build(names) {
    if (names.join() !== [...this.#rows.keys()].join()) {
      this.#rows = new Map(names.map((name, index) => [name, this.#row(name, index)]));
      this.#list.replaceChildren(...[...this.#rows.values()].map((row) => row.root));
      this.#find.hidden = names.length <= MANY;
    }
    this.#reset.hidden = this.#scale.hidden = !names.length;
    this.#none.hidden = names.length > 0;
    const known = Object.entries(this.strengths).filter(([name]) => this.#rows.has(name));
    this.strengths = Object.fromEntries(known);
    this.keep = new Set([...this.keep].filter((name) => this.#rows.has(name)));
    this.#show();
  }

  set(strengths, keep, event) {
    this.strengths = { ...strengths };
    this.keep = new Set(keep);
    for (const name of this.keep) delete this.strengths[name];
    this.#show();
    this.changed(event);
  }

  #row(name, index) {
    const root = document.createElement("div");
    root.className = "attribute";
    root.innerHTML = `<label for="attribute-${index}"></label>
      <button type="button" class="value" title="Back to 0"></button>
      <button type="button" class="keep">${LOCK}</button>
      <input id="attribute-${index}" type="range" min="${-RANGE}" max="${RANGE}" step="${STEP}" value="0">`;
    const [label, value, keep, input] = root.children;
    const title = labelOf(name);
    label.textContent = label.title = title;
    value.setAttribute("aria-label", `${title} back to 0`);
    keep.setAttribute("aria-label", `Keep: ${title}`);
    keep.title = `Keep as it is: ${title}`;
    input.addEventListener("input", (event) => this.#move(name, Number(input.value), event));
    value.addEventListener("click", (event) => {
      this.#move(name, 0, event);
      input.focus();
    });
    keep.addEventListener("click", (event) => this.#toggle(name, event));
    return { root, value, keep, input };
  }

  #move(name, strength, event) {
    if (strength) this.strengths[name] = strength;
    else delete this.strengths[name];
    this.#showRow(name);
    this.changed(event);
  }

  #toggle(name, event) {
    if (!this.keep.delete(name)) {
      this.keep.add(name);
      delete this.strengths[name];
    }
    this.#showRow(name);
    this.changed(event);
  }

  #show() {
    for (const name of this.#rows.keys()) this.#showRow(name);
  }

  #showRow(name) {
    const { value, keep, input } = this.#rows.get(name);
    const strength = this.strengths[name] ?? 0;
    input.value = strength;
    input.disabled = this.keep.has(name);
    input.setAttribute("aria-valuetext", input.disabled ? "kept" : signed(strength));
    fill(input, 0);
    value.textContent = signed(strength);
    value.disabled = !strength;
    keep.setAttribute("aria-pressed", this.keep.has(name));
    this.#reset.disabled = !Object.keys(this.strengths).length && !this.keep.size;
  }
}
