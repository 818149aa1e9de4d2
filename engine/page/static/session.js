// The socket to the page's server. One ask is on its way at a time; of each kind only the newest waits, so that however
// fast a slider moves nothing queues.

const ORDER = ["model", "face", "other", "samples", "edit"];
const FIRST_PAUSE = 300;
const LONGEST_PAUSE = 4000;

export class Session {
  #socket = null;
  #waiting = new Map();
  #sent = null;
  #pause = FIRST_PAUSE;
  #held = 0;

  // opened(): ask for everything anew. trouble(sentence, detail): it will be tried again; null: that is over.
  constructor({ opened, trouble }) {
    this.opened = opened;
    this.trouble = trouble;
    this.#open();
  }

  // An ask of a kind, in place of one of the same kind that hasn't left yet.
  // make(): what to send when its turn comes: {ask, ...}, and a photo as `file`. done(header, pixels), failed(header).
  want(kind, { make, done, failed }) {
    this.#waiting.set(kind, { make, done, failed });
    this.#next();
  }

  #open() {
    const url = new URL("session", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.hash = "";
    this.#socket = new WebSocket(url);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onopen = () => this.#begin();
    this.#socket.onmessage = (event) => this.#answered(new Uint8Array(event.data));
    this.#socket.onclose = (event) => this.#closed(event);
  }

  #begin() {
    clearTimeout(this.#held);
    this.#held = 0;
    this.#sent = null;
    this.#waiting.clear();
    this.opened();
  }

  #closed(event) {
    this.#sent = null;
    this.trouble(event.reason || "The page's own server can't be reached.", "");
    setTimeout(() => this.#open(), this.#pause);
    this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE);
  }

  #next() {
    if (this.#sent || this.#held || this.#socket.readyState !== WebSocket.OPEN) return;
    const kind = ORDER.find((one) => this.#waiting.has(one));
    if (!kind) return;
    const want = this.#waiting.get(kind);
    this.#waiting.delete(kind);
    const { file, ...ask } = want.make();
    this.#sent = { kind, want };
    const header = JSON.stringify(ask);
    this.#socket.send(file ? new Blob([header, "\n", file]) : header);
  }

  #answered(message) {
    const end = message.indexOf(10);
    const header = JSON.parse(new TextDecoder().decode(message.subarray(0, end)));
    const { kind, want } = this.#sent;
    this.#sent = null;
    if (header.reload) {
      this.#begin();
    } else if (header.retry_s) {
      this.trouble(header.error, header.detail ?? "");
      if (!this.#waiting.has(kind)) this.#waiting.set(kind, want);
      this.#held = setTimeout(() => {
        this.#held = 0;
        this.#next();
      }, 1000 * header.retry_s);
    } else {
      this.#pause = FIRST_PAUSE;
      this.trouble(null);
      if (header.error) want.failed(header);
      else want.done(header, message.subarray(end + 1));
      this.#next();
    }
  }
}
