// Pixels on canvases, the view of original and edited, and the file of the latter.

const LARGEST = 640; // beyond, a canvas is scaled by the browser: a face has few pixels, and drawing more takes time

// RGB pixels of one image, uint8 [size, size, 3], to a canvas of that size.
export function canvasOf(pixels, size, canvas = document.createElement("canvas")) {
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  const rgba = image.data;
  for (let from = 0, to = 0; to < rgba.length; from += 3, to += 4) {
    rgba[to] = pixels[from];
    rgba[to + 1] = pixels[from + 1];
    rgba[to + 2] = pixels[from + 2];
    rgba[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// A small canvas onto another of any size, smoothly.
export function draw(source, canvas) {
  const side = Math.min(LARGEST, Math.round(canvas.clientWidth * devicePixelRatio)) || source.width;
  if (canvas.width !== side || canvas.height !== side) canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, side, side);
}

export class Picture {
  #root = document.getElementById("picture");
  #divider = document.getElementById("divider");
  #sources = {};

  constructor() {
    document.getElementById("views").addEventListener("change", (event) => {
      this.#root.dataset.view = event.target.value;
    });
    this.#divider.addEventListener("input", () => {
      this.#root.style.setProperty("--cut", `${this.#divider.value / 10}%`);
    });
    this.#root.addEventListener("pointerdown", () => {
      if (this.#root.dataset.view === "edited") this.#root.classList.add("held");
    });
    for (const end of ["pointerup", "pointercancel", "blur"]) {
      addEventListener(end, () => this.#root.classList.remove("held"));
    }
    new ResizeObserver(() => Object.keys(this.#sources).forEach((which) => this.#draw(which))).observe(this.#root);
  }

  // `which`: "original" or "edited".
  show(which, pixels, size) {
    this.#sources[which] = canvasOf(pixels, size, this.#sources[which]);
    this.#draw(which);
  }

  // The edited face as a PNG file, of the model's own size.
  save(name) {
    this.#sources.edited?.toBlob((blob) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  #draw(which) {
    draw(this.#sources[which], this.#root.querySelector(`canvas.${which}`));
  }
}
