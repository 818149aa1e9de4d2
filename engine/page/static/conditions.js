// A button for every attribute that drawn faces can be asked to have or to lack.

import { labelOf } from "./attributes.js";

const WORDS = { having: "with", lacking: "without" };
const NEXT = { undefined: "having", having: "lacking" };

export class Conditions {
  #root = document.getElementById("conditions");
  #list = document.getElementById("conditions-list");
  #kinds = new Map();

  // changed(): the conditions have changed.
  constructor(changed) {
    this.changed = changed;
    this.having = [];
    this.lacking = [];
  }

  // The attributes of a model that can be a condition; those that were chosen stay so.
  build(names) {
    this.#root.hidden = !names.length;
    this.#kinds = new Map(names.map((name) => [name, Object.keys(WORDS).find((kind) => this[kind].includes(name))]));
    this.#list.replaceChildren(...names.map((name) => this.#button(name)));
    this.#tell();
  }

  #button(name) {
    const button = document.createElement("button");
    button.type = "button";
    button.addEventListener("click", () => {
      this.#kinds.set(name, NEXT[this.#kinds.get(name)]);
      this.#show(name, button);
      this.#tell();
      this.changed();
    });
    this.#show(name, button);
    return button;
  }

  #show(name, button) {
    const kind = this.#kinds.get(name);
    button.dataset.kind = kind ?? "";
    button.textContent = labelOf(name);
    button.setAttribute("aria-label", `${labelOf(name)}: ${WORDS[kind] ?? "either"}`);
  }

  #tell() {
    for (const kind of Object.keys(WORDS)) {
      this[kind] = [...this.#kinds].filter(([, one]) => one === kind).map(([name]) => name);
    }
    const named = (kind) => this[kind].map((name) => `${WORDS[kind]} ${labelOf(name).toLowerCase()}`);
    const summary = this.#root.querySelector("summary");
    const said = Object.keys(WORDS).flatMap(named).join(", ");
    summary.textContent = said ? said.charAt(0).toUpperCase() + said.slice(1) : "With or without";
    summary.classList.toggle("set", said);
  }
}
