// The settings in the address, behind the #, which browsers keep to themselves:
// #set=Smiling:1.5&keep=Male&face=7:3:0.8&face-with=Young&other=photo&mix=0.5&seed=7&temperature=0.8&with=Young
// A drawn face is its seed, its place among those drawn, the temperature, and its conditions. A photo is only named.

const number = (text, least, most) => {
  const value = text === null || text.trim() === "" ? NaN : Number(text);
  return value >= least && value <= most ? value : null;
};

function readFace(slot, fields, limits) {
  const text = fields.get(slot);
  if (text === "photo") return { photo: null };
  const [seed, pick, temperature] = (text ?? "").split(":");
  const face = {
    seed: number(seed ?? null, 0, limits.seed),
    pick: number(pick ?? null, 0, limits.pick),
    temperature: number(temperature ?? null, 0, limits.temperature),
    having: fields.getAll(`${slot}-with`),
    lacking: fields.getAll(`${slot}-without`),
  };
  const whole = Number.isInteger(face.seed) && Number.isInteger(face.pick);
  return whole && face.temperature !== null ? face : null;
}

const listed = (field, names) => [...names].map((name) => `${field}=${encodeURIComponent(name)}`);

function writeFace(slot, face) {
  if (face.photo !== undefined) return [`${slot}=photo`];
  return [
    `${slot}=${face.seed}:${face.pick}:${face.temperature}`,
    ...listed(`${slot}-with`, face.having),
    ...listed(`${slot}-without`, face.lacking),
  ];
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
    face: readFace("face", fields, limits),
    other: readFace("other", fields, limits),
    mix: number(fields.get("mix"), 0, 1),
    seed: Number.isInteger(seed) ? seed : null,
    temperature: number(fields.get("temperature"), 0, limits.temperature),
    having: fields.getAll("with"),
    lacking: fields.getAll("without"),
  };
}

export function writeLink({ strengths, keep, face, other, mix, seed, temperature, having, lacking }) {
  return [
    ...Object.entries(strengths).map(([name, strength]) => `set=${encodeURIComponent(name)}:${strength}`),
    ...listed("keep", keep),
    ...writeFace("face", face),
    ...(other ? [...writeFace("other", other), `mix=${mix}`] : []),
    `seed=${seed}`,
    `temperature=${temperature}`,
    ...listed("with", having),
    ...listed("without", lacking),
  ].join("&");
}
