// Plays a moment of a video, or the whole of it, with the boxes of its detections drawn over it.
// Times are milliseconds of the video; boxes are shares of its width and height.
const CHUNK_MS = 30000;
const BRIDGE_MS = 1500; // a track unseen for longer is not drawn in between

const figure = document.querySelector(".player");
if (figure) start(figure);

function start(figure) {
  const video = figure.querySelector("video");
  const canvas = figure.querySelector("canvas");
  const { boxes: source, track: chosen } = figure.dataset;
  const from = Number(figure.dataset.start);
  const to = figure.dataset.end === "" ? Infinity : Number(figure.dataset.end);
  const chunks = new Map();
  let shown = Boolean(source);
  let retried = 0;

  const now = () => video.currentTime * 1000;
  const seek = (ms) => { video.currentTime = Math.max(0, ms) / 1000; };

  // --- boxes, in portions of half a minute ---

  function chunk(ms) {
    const number = Math.floor(Math.max(0, ms) / CHUNK_MS);
    if (!source || chunks.has(number)) return chunks.get(number);
    chunks.set(number, null);
    // A portion overlaps the next one, so that what lies between two samples is drawn at its border too.
    const begin = number * CHUNK_MS - BRIDGE_MS;
    fetch(`${source}?from=${begin}&to=${(number + 1) * CHUNK_MS + BRIDGE_MS}`)
      .then((answer) => (answer.ok ? answer.json() : { frames: [], tracks: [] }))
      .then((found) => { chunks.set(number, found); draw(); });
    return null;
  }

  function draw(ms = now()) {
    const { clientWidth: width, clientHeight: height } = video;
    const ratio = window.devicePixelRatio;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    figure.querySelector(".time").value = clock(ms);
    moveCursor(ms);
    const data = chunk(ms);
    if (!shown || !data || !video.videoWidth) return;
    const scale = Math.min(width / video.videoWidth, height / video.videoHeight);
    const [w, h] = [video.videoWidth * scale, video.videoHeight * scale];
    const [left, top] = [(width - w) / 2, (height - h) / 2];
    pen.font = "13px system-ui, sans-serif";
    pen.lineJoin = "round";
    for (const { track, label, at } of data.tracks) {
      for (const [, score, x1, y1, x2, y2] of track === null ? untracked(at, ms) : between(at, ms)) {
        pen.strokeStyle = pen.fillStyle = label === "face" ? "#ffb35c" : "#66a3ff";
        pen.lineWidth = String(track) === chosen ? 4 : 2;
        pen.strokeRect(left + x1 * w, top + y1 * h, (x2 - x1) * w, (y2 - y1) * h);
        const name = `${label} ${track ?? ""} ${Math.round(score * 100)} %`;
        const place = [left + x1 * w, Math.max(12, top + y1 * h - 5)];
        pen.strokeStyle = "#000"; // names stay legible on bright ground
        pen.lineWidth = 3;
        pen.strokeText(name, ...place);
        pen.fillText(name, ...place);
      }
    }
  }

  // --- the picture's own clock, where the browser has it; else the time of the element ---

  function follow() {
    if ("requestVideoFrameCallback" in video) {
      video.requestVideoFrameCallback((_, frame) => { tick(frame.mediaTime * 1000); follow(); });
    } else {
      video.addEventListener("timeupdate", () => tick(now()));
    }
  }

  function tick(ms) {
    draw(ms);
    chunk(ms + CHUNK_MS / 2);
    if (ms >= to && !video.paused) video.pause();
  }

  function step(direction) {
    video.pause();
    const times = chunk(now())?.frames ?? [];
    const here = now();
    const next = direction > 0 ? times.find((ms) => ms > here + 1) : times.findLast((ms) => ms < here - 1);
    // A millisecond into the frame: rounding must not show the one before.
    seek(next === undefined ? here + direction * 40 : next + 1);
  }

  const actions = {
    play: () => { if (video.paused) { if (now() >= to) seek(from); video.play(); } else video.pause(); },
    back: () => step(-1),
    forward: () => step(1),
    slow: () => press("slow", (video.playbackRate = video.playbackRate === 1 ? 0.25 : 1) !== 1),
    boxes: () => { press("boxes", (shown = !shown)); draw(); },
    again: () => { seek(from); video.play(); },
  };
  const press = (name, on) => figure.querySelector(`[data-do=${name}]`).setAttribute("aria-pressed", on);

  for (const button of figure.querySelectorAll("[data-do]")) {
    button.addEventListener("click", () => actions[button.dataset.do]());
  }
  const keys = { " ": "play", ",": "back", ".": "forward", s: "slow", b: "boxes", r: "again" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, button, video")) return;
    const link = { j: "[data-next] a", k: "[data-previous] a" }[event.key];
    if (link) document.querySelector(link)?.click();
    const action = keys[event.key];
    if (!action || !figure.querySelector(`[data-do=${action}]`)) return;
    event.preventDefault();
    actions[action]();
  });

  video.addEventListener("loadedmetadata", () => { if (!retried && from) seek(from); }, { once: true });
  video.addEventListener("loadeddata", () => draw());
  video.addEventListener("seeked", () => draw());
  // The address behind a video expires: a new one is asked for at the same place, once a minute at most.
  video.addEventListener("error", () => {
    const place = video.currentTime;
    if (video.readyState === 0 && !place || Date.now() - retried < 60000) {
      figure.querySelector("[data-unplayable]").hidden = false;
      return;
    }
    retried = Date.now();
    const playing = !video.paused;
    video.load();
    video.addEventListener("loadedmetadata", () => { video.currentTime = place; if (playing) video.play(); }, { once: true });
  });
  new ResizeObserver(() => draw()).observe(video);
  if (video.error) figure.querySelector("[data-unplayable]").hidden = false;
  if (video.readyState >= 1 && from) seek(from);
  follow();
  lanes(seek, video);
}

// A click on a lane plays from there, a double click opens the event; Enter on a focused bar plays, too.
function lanes(seek, video) {
  for (const bar of document.querySelectorAll("[data-seek]")) {
    bar.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      seek(Number(bar.dataset.seek));
      video.scrollIntoView({ block: "nearest" });
      video.play();
    });
    bar.addEventListener("dblclick", () => location.assign(bar.getAttribute("href")));
  }
}

function moveCursor(ms) {
  const line = document.querySelector(".cursor line");
  if (!line) return;
  const x = (1000 * ms) / Number(document.querySelector(".lanes").dataset.duration);
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
}

// The box of a track at a time: on the way from one sample to the next.
function between(at, ms) {
  const after = at.findIndex(([time]) => time >= ms - 1);
  if (after === -1) return [];
  if (after === 0 || at[after][0] <= ms + 1) return Math.abs(at[after][0] - ms) <= 1 ? [at[after]] : [];
  const [a, b] = [at[after - 1], at[after]];
  if (b[0] - a[0] > BRIDGE_MS) return [];
  const share = (ms - a[0]) / (b[0] - a[0]);
  return [a.map((value, place) => value + share * (b[place] - value))];
}

// Detections without a track are known at their own times only.
const untracked = (at, ms) => at.filter(([time]) => Math.abs(time - ms) <= 50);

function clock(ms) {
  const minutes = Math.floor(ms / 60000);
  return `${minutes}:${((ms % 60000) / 1000).toFixed(1).padStart(4, "0")}`;
}
