// Sends dropped files to the object store and follows them; renews what is on its way.
const POLL_MS = 2000;
const form = document.querySelector(".drop");
const words = new Map([...document.querySelectorAll("#words dt")].map((each) => [each.textContent, each.nextElementSibling.textContent]));
const word = (text) => words.get(text) ?? text;
const pause = () => new Promise((done) => setTimeout(done, POLL_MS));

form.addEventListener("submit", (event) => event.preventDefault());
form.querySelector("[type=file]").addEventListener("change", (event) => {
  [...event.target.files].forEach(send);
  event.target.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    form.classList.toggle("over", kind === "dragover");
    if (kind === "drop") [...event.dataTransfer.files].forEach(send);
  });
}

async function send(file) {
  const row = document.querySelector("#followed").content.firstElementChild.cloneNode(true);
  document.querySelector(".followed").append(row);
  const show = (state, progress) => {
    row.querySelector(".state").textContent = state;
    if (progress !== undefined) row.querySelector("progress").value = progress;
  };
  row.querySelector(".name").textContent = file.name;
  row.querySelector("progress").setAttribute("aria-label", file.name);
  try {
    if (file.size > Number(form.dataset.largest)) throw new Error(word("too large for a browser: use capstone submit"));
    const camera = form.querySelector("[name=camera]").value;
    const answer = await fetch("/uploads", { method: "POST", body: JSON.stringify({ name: file.name, camera }) });
    const upload = await answer.json();
    if (!answer.ok) throw new Error(upload.error);
    await put(file, upload, (share) => show(word("uploading"), share));
    await followed(upload, row, show);
  } catch (error) {
    show(`${word("not uploaded")}: ${error.message}`, 0);
  }
}

// XMLHttpRequest, because fetch does not say how far an upload is.
function put(file, { put: address, headers }, progress) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("PUT", address);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => progress(event.loaded / event.total));
    request.addEventListener("load", () => (request.status < 300 ? done() : failed(new Error(`S3: ${request.status}`))));
    request.addEventListener("error", () => failed(new Error("S3")));
    request.send(file);
  });
}

async function followed({ video_id: video, earlier }, row, show) {
  show(word("uploaded"), 0);
  const link = row.querySelector("a");
  link.href = `/videos/${encodeURIComponent(video)}`;
  for (;;) {
    const answer = await fetch(`/uploads/${encodeURIComponent(video)}?earlier=${earlier ?? ""}`).catch(() => null);
    const { state, progress, message } = answer?.ok ? await answer.json() : {};
    if (state) show(message ? `${word(state)}: ${message}` : word(state), state === "done" ? 1 : progress);
    if (state === "done") link.hidden = false;
    if (["done", "failed", "superseded", "cancelled"].includes(state)) return;
    await pause();
  }
}

for (;;) {
  await pause();
  if (document.hidden) continue;
  const answer = await fetch("/uploads?part=now").catch(() => null);
  if (!answer?.ok) continue;
  const html = await answer.text();
  const now = document.querySelector("#now");
  // What is focused or selected stays so while nothing changes.
  if (html !== now.dataset.html) { now.innerHTML = html; now.dataset.html = html; }
}
