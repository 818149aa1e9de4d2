// Where photos come from: files, drops, the clipboard, the camera. Large ones are made smaller before they leave.

const LONGEST = 2048; // pixels; a face in it still has many times those of a model

// A photo as it is sent: as it is, or smaller; turned upright, then, as browsers do that. null: it can't be read.
export async function shrunk(file) {
  let whole, bitmap;
  try {
    whole = new Blob([await file.arrayBuffer()]); // it is sent again after a pause of the server, and the file may be gone
  } catch {
    return null; // a folder, for example
  }
  try {
    bitmap = await createImageBitmap(whole);
  } catch {
    return whole; // the server says what is wrong with it
  }
  const scale = LONGEST / Math.max(bitmap.width, bitmap.height);
  const known = ["image/jpeg", "image/png", "image/webp"].includes(file.type);
  if (scale >= 1 && known) return whole;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * Math.min(1, scale)));
  canvas.height = Math.max(1, Math.round(bitmap.height * Math.min(1, scale)));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff"; // as the model sees what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
}

// taken(file, tile): a photo was chosen; dropped onto a tile, it is for that one. refused(sentence).
export function watchPhotos(taken, refused) {
  const [file, capture, drop] = ["file", "capture", "drop"].map((id) => document.getElementById(id));
  const first = (files, tile) => {
    if (files.length) taken(files[0], tile);
  };
  for (const input of [file, capture]) {
    input.addEventListener("change", () => {
      first(input.files);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  document.getElementById("photo").addEventListener("click", () => file.click());
  document.getElementById("camera").addEventListener("click", () => {
    if (navigator.mediaDevices?.getUserMedia) shoot(taken, refused);
    else capture.click(); // without https, or an old browser: the camera's own application
  });

  let depth = 0; // of the elements that are being dragged over
  const over = (change) => {
    depth = change ? Math.max(0, depth + change) : 0;
    drop.classList.toggle("over", depth > 0);
  };
  const hasFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => hasFile(event) && over(1));
  addEventListener("dragleave", (event) => hasFile(event) && over(-1));
  addEventListener("dragover", (event) => hasFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    over(0);
    first(event.dataTransfer.files, event.target.closest?.(".tile")?.id);
  });
  addEventListener("paste", (event) => first(event.clipboardData?.files ?? []));
}

async function shoot(taken, refused) {
  const dialog = document.getElementById("shutter");
  const video = dialog.querySelector("video");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user", width: { ideal: 1280 } } });
  } catch (error) {
    refused(error.name === "NotAllowedError" ? "The browser doesn't allow the camera." : "There is no camera to be used.");
    return;
  }
  video.srcObject = stream;
  dialog.showModal();
  const pressed = (event) => {
    if (event.target.value === "take") {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => blob && taken(blob), "image/jpeg", 0.95);
    }
    if (event.target.value) dialog.close();
  };
  dialog.addEventListener("click", pressed);
  dialog.addEventListener(
    "close",
    () => {
      dialog.removeEventListener("click", pressed);
      for (const track of stream.getTracks()) track.stop();
      video.srcObject = null;
    },
    { once: true },
  );
}
