// The settings in the address, behind the #, which browsers keep to themselves:
// #set=Smiling:1.5&keep=Male&face=7:3:0.8&other=photo&mix=0.5&seed=7&temperature=0.8
// A drawn face is its seed, its place among those drawn, and the temperature. A photo is only named.

const number = (text, least, most) => {
  const value = text === null || text.trim() === "" ? NaN : Number(text);
  return value >= least && value <= most ? value : null;
};

function readFace(text, limits) {
  if (text === "photo") return { photo: null };
  const [seed, pick, temperature] = (text ?? "").split(":");
  const face = {
    seed: number(seed ?? null, 0, limits.seed),
    pick: number(pick ?? null, 0, limits.pick),
    temperature: number(temperature ?? null, 0, limits.temperature),
  };
  const whole = Number.isInteger(face.seed) && Number.isInteger(face.pick);
  return whole && face.temperature !== null ? face : null;
}

function writeFace(face) {
  return face.photo === undefined ? `${face.seed}:${face.pick}:${face.temperature}` : "photo";
}

export function readLink(hash, limits) {
  const fields = new URLSearchParams(hash.replace(/^#/, ""));
  const strengths = {};
  for (const setting of fields.getAll("set")) {
    const colon = setting.lastIndexOf(":");
    const strength = number(setting.slice(colon + 1), -limits.strength, limits.strength);
    if (colon > 0 && strength) strengths[setting.slice(0, colon)] = strength;
  }
  const seed = number(fields.get("seed"), 0, limits.seed);
  return {
    strengths,
    keep: fields.getAll("keep"),
    face: readFace(fields.get("face"), limits),
    other: readFace(fields.get("other"), limits),
    mix: number(fields.get("mix"), 0, 1),
    seed: Number.isInteger(seed) ? seed : null,
    temperature: number(fields.get("temperature"), 0, limits.temperature),
  };
}

export function writeLink({ strengths, keep, face, other, mix, seed, temperature }) {
  const name = (text) => encodeURIComponent(text);
  return [
    ...Object.entries(strengths).map(([attribute, strength]) => `set=${name(attribute)}:${strength}`),
    ...[...keep].map((attribute) => `keep=${name(attribute)}`),
    `face=${writeFace(face)}`,
    ...(other ? [`other=${writeFace(other)}`, `mix=${mix}`] : []),
    `seed=${seed}`,
    `temperature=${temperature}`,
  ].join("&");
}
