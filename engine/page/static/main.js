// The page: what is set, and what follows from it.

import { Attributes, RANGE, fill } from "./attributes.js";
import { readLink, writeLink } from "./link.js";
import { shrunk, watchPhotos } from "./photo.js";
import { Picture, canvasOf, draw } from "./picture.js";
import { Session } from "./session.js";
import { Conditions } from "./conditions.js";

const COUNT = 8; // drawn faces
const SEEDS = 10_000; // of "Draw others"; short ones make short links
const LIMITS = { strength: RANGE, seed: 2 ** 32 - 1, pick: COUNT - 1, temperature: 1.5 };
const START = { seed: 7, pick: 0, temperature: 0.8, having: [], lacking: [] };
const SLOTS = ["face", "other"];

const at = (id) => document.getElementById(id);
const picture = new Picture();
const attributes = new Attributes((event) => moved(event));
const conditions = new Conditions(() => redraw());
// faces: of each slot a drawn one, {seed, pick, temperature, having, lacking}, or a {photo, align}, which links don't hold.
const state = { size: 0, maxBytes: 0, faces: {}, active: "face", mix: 0, seed: START.seed, temperature: START.temperature };
const wanted = {}; // the face that was asked for last, of each slot
let moves = []; // times of those that no ask has taken along yet
let saving = 0;

// Notices, by what they are about; one takes the place of another.

const notices = new Map();

// actions: buttons by their labels, each of which ends it; one that stays for some seconds has none.
function notice(about, text, { actions = { OK: null }, seconds = 0 } = {}) {
  quiet(about);
  const line = document.createElement("p");
  line.append(document.createElement("span"));
  line.firstChild.append(text);
  for (const [label, act] of seconds ? [] : Object.entries(actions)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", () => {
      quiet(about);
      act?.();
    });
    line.append(button);
  }
  if (seconds && seconds < Infinity) setTimeout(() => line.remove(), 1000 * seconds);
  notices.set(about, line);
  at("notices").append(line);
}

function quiet(about) {
  notices.get(about)?.remove();
  notices.delete(about);
}

function status(name, text, detail = "") {
  at("status").dataset.state = name;
  at("status").querySelector("span").textContent = text;
  at("status").title = detail;
}

function trouble(sentence, detail) {
  if (sentence === null) {
    quiet("trouble");
    if (at("status").dataset.state !== "ready") status("ready", "ready");
    return;
  }
  status("waiting", "trying again", detail);
  if (notices.get("trouble")?.textContent !== sentence) notice("trouble", sentence, { seconds: Infinity });
}

// What is asked

// What went wrong with an ask is said until one of its kind goes well.
function ask(kind, { make, done }) {
  session.want(kind, {
    make,
    done: (answer, pixels) => {
      quiet(kind);
      done(answer, pixels);
    },
    failed: (answer) => notice(kind, answer.error),
  });
}

function askModel() {
  ask("model", { make: () => ({ ask: "model" }), done: knowModel });
}

function knowModel(model) {
  state.size = model.size;
  state.maxBytes = model.max_photo_bytes;
  document.title = `Faces · ${model.name}`;
  at("about").textContent = `${model.name} · ${model.size} × ${model.size} pixels · ${model.engine} · ${model.target}`;
  attributes.build(model.attributes);
  conditions.build(model.conditions);
  for (const slot of SLOTS) {
    const face = wanted[slot] ?? state.faces[slot];
    if (!face) continue;
    for (const kind of ["having", "lacking"]) face[kind] = face[kind]?.filter((name) => model.conditions.includes(name));
    take(slot, face);
  }
  askSamples();
  askEdit();
}

// Makes a face that of a slot, once the server has it.
function take(slot, face) {
  const { photo, align } = face;
  wanted[slot] = face;
  session.want(slot, {
    make: () => {
      if (!photo) return { ask: "sample", slot, ...face };
      status("sending", "sending the photo");
      return { ask: "photo", slot, align, file: photo };
    },
    done: (answer, pixels) => {
      if (!wanted[slot]) return; // removed meanwhile
      if (state.faces[slot] !== face) {
        if (slot === "other" && !state.faces.other && state.mix === 0) state.mix = 0.5;
        state.faces[slot] = face;
        quiet("photo");
        if (answer.note) notice("photo", answer.note);
        save();
      }
      if (slot === "face") picture.show("original", pixels, state.size);
      showTile(slot, pixels);
      askEdit();
    },
    failed: (answer) => {
      wanted[slot] = state.faces[slot];
      const actions = { "Take its middle": () => take(slot, { photo, align: false }), Cancel: null };
      notice("photo", answer.error, answer.middle ? { actions } : {});
    },
  });
}

// How faces are drawn now.
function drawing() {
  return { seed: state.seed, temperature: state.temperature, having: conditions.having, lacking: conditions.lacking };
}

function askSamples() {
  const how = drawing();
  ask("samples", {
    make: () => ({ ask: "samples", count: COUNT, ...how }),
    done: (_, pixels) => showSamples(pixels),
  });
}

function askEdit() {
  let taken = [];
  ask("edit", {
    make: () => {
      [taken, moves] = [moves, []];
      const { strengths, keep } = attributes;
      return { ask: "edit", strengths, keep: [...keep], mix: state.faces.other ? state.mix : 0 };
    },
    done: (_, pixels) => {
      picture.show("edited", pixels, state.size);
      requestAnimationFrame(() => measure(taken));
    },
  });
}

// How long a move took to be seen, from its event to the frame that shows it or a later one.
function measure(begins) {
  const end = performance.now();
  for (const start of begins) performance.measure("move", { start, end });
  performance.clearMeasures("move");
  if (begins.length) status("ready", `${Math.round(end - begins[0])} ms`, "From the move to the picture");
}

function moved(event) {
  if (event) moves.push(event.timeStamp);
  askEdit();
  save();
}

// What is shown

function showTile(slot, pixels) {
  const canvas = at(slot).querySelector("canvas");
  canvas.hidden = false;
  draw(canvasOf(pixels, state.size), canvas);
  showMix();
  showPicks();
}

function showMix() {
  const mix = at("mix");
  const { other } = state.faces;
  mix.disabled = !other;
  at("remove").hidden = !other;
  mix.value = other ? state.mix : 0;
  at("mixed").textContent = other ? `${Math.round(100 * state.mix)} %` : "";
  at("other").querySelector("canvas").hidden = !other;
  fill(mix, 0);
}

function showTemperature() {
  at("temperature").value = state.temperature;
  at("warmth").textContent = state.temperature.toFixed(2);
  fill(at("temperature"), 0);
}

function showSamples(pixels) {
  const list = at("samples");
  const length = pixels.length / COUNT;
  while (list.children.length < COUNT) {
    const button = document.createElement("button");
    const pick = list.children.length;
    button.type = "button";
    button.setAttribute("aria-label", `Drawn face ${pick + 1}`);
    button.append(document.createElement("canvas"));
    button.addEventListener("click", () => take(state.active, { ...drawing(), pick }));
    list.append(button);
  }
  for (const [pick, button] of [...list.children].entries()) {
    draw(canvasOf(pixels.subarray(pick * length, (pick + 1) * length), state.size), button.firstChild);
  }
  showPicks();
}

function showPicks() {
  for (const [pick, button] of [...at("samples").children].entries()) {
    const used = SLOTS.some((slot) => state.faces[slot]?.seed === state.seed && state.faces[slot].pick === pick);
    button.setAttribute("aria-pressed", used);
  }
}

function activate(slot) {
  state.active = slot;
  for (const one of SLOTS) at(one).setAttribute("aria-pressed", one === slot);
}

// What can be done

function drawOthers() {
  state.seed = Math.floor(SEEDS * Math.random());
  askSamples();
  save();
}

async function takePhoto(file, tile) {
  const slot = tile ?? state.active;
  const photo = await shrunk(file);
  if (!photo) {
    notice("photo", "The photo can't be read. Is it a file, and still where it was?");
  } else if (photo.size > state.maxBytes) {
    notice("photo", `The photo has ${photo.size} bytes, more than the accepted ${state.maxBytes}; make it smaller.`);
  } else {
    take(slot, { photo });
  }
}

function warm() {
  state.temperature = Number(at("temperature").value);
  showTemperature();
  redraw();
}

// Draws the same faces in another way, those that are edited among them.
function redraw() {
  for (const slot of SLOTS) {
    const face = wanted[slot];
    if (face?.seed === state.seed) take(slot, { ...face, ...drawing() });
  }
  askSamples();
  save();
}

function remove() {
  delete state.faces.other;
  delete wanted.other;
  state.mix = 0;
  activate("face");
  showMix();
  showPicks();
  moved();
}

function save() {
  clearTimeout(saving);
  saving = setTimeout(saveNow, 250);
}

function saveNow() {
  clearTimeout(saving);
  const link = writeLink({ ...attributes, ...state.faces, mix: state.mix, ...drawing() });
  history.replaceState(null, "", `#${link}`);
}

async function copyLink() {
  saveNow();
  const isPhoto = SLOTS.some((slot) => state.faces[slot]?.photo);
  try {
    await navigator.clipboard.writeText(location.href);
    const photo = " It holds the settings; the photo stays here.";
    notice("link", `Link copied.${isPhoto ? photo : " Its seed draws the same face."}`, { seconds: 4 });
  } catch {
    notice("link", "Copy the link from the address bar; this browser doesn't let the page do it.");
  }
}

// Takes the settings of a link; what it doesn't say is as at the start.
function restore() {
  const link = readLink(location.hash, LIMITS);
  const usable = (face) => face && face.photo === undefined;
  for (const slot of SLOTS) delete wanted[slot];
  state.faces = { face: usable(link.face) ? link.face : START };
  if (usable(link.other)) state.faces.other = link.other;
  state.mix = link.mix ?? 0;
  state.seed = link.seed ?? START.seed;
  state.temperature = link.temperature ?? START.temperature;
  conditions.having = link.having;
  conditions.lacking = link.lacking;
  attributes.strengths = link.strengths;
  attributes.keep = new Set(link.keep);
  for (const name of link.keep) delete attributes.strengths[name];
  showMix();
  showTemperature();
  if (link.face?.photo === null || link.other?.photo === null) {
    notice("photo", "This link was made with a photo, which a link doesn't hold: add it, and the settings are here.");
  }
}

restore();
const session = new Session({ opened: askModel, trouble });
watchPhotos(takePhoto, (sentence) => notice("photo", sentence));
addEventListener("hashchange", () => {
  restore();
  askModel();
});
for (const slot of SLOTS) at(slot).addEventListener("click", () => activate(slot));
at("mix").addEventListener("input", (event) => {
  state.mix = Number(event.target.value);
  showMix();
  moved(event);
});
at("remove").addEventListener("click", remove);
at("again").addEventListener("click", drawOthers);
at("temperature").addEventListener("input", warm);
at("link").addEventListener("click", copyLink);
at("download").addEventListener("click", () => {
  const settings = Object.entries(attributes.strengths).map(([name, strength]) => `_${name}${strength > 0 ? "+" : ""}${strength}`);
  picture.save(`face${settings.join("")}.png`);
});
