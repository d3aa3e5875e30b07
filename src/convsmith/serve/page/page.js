"use strict";

const MOST_CLASSES = 10; // shown of a long list
const PATIENCE = 90000; // milliseconds to wait for an answer
const SMALL = 96; // images narrower than this many pixels are enlarged without blur

const part = (id) => document.getElementById(id);
let limits = { bytes: Infinity };
let latest = 0; // answers to any but the latest image are dropped
let camera = null;

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function percent(share) {
  return (100 * share).toFixed(1) + " %";
}

function say(status, error) {
  part("status").textContent = status;
  part("error").textContent = error;
}

function picture(image, source) {
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < SMALL), { once: true });
  image.src = source;
}

function show(answer) {
  part("answer").textContent = answer.label + ": " + percent(answer.confidence);
  picture(part("seen"), answer.seen);
  part("heat").hidden = !answer.heat_map;
  part("no-heat").hidden = Boolean(answer.heat_map);
  part("no-heat").textContent = answer.heat_map_missing || "";
  if (answer.heat_map) {
    picture(part("heat-map"), answer.heat_map);
    part("heat-map").alt = "Heat map: where the model looked to answer " + answer.label;
  }
  // JavaScript puts keys that look like integers first, whatever order they came in.
  const probabilities = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]);
  part("probabilities").replaceChildren(
    ...probabilities.slice(0, MOST_CLASSES).map(([name, share]) =>
      element("tr", {},
        element("th", { scope: "row", textContent: name }),
        element("td", { className: "number", textContent: percent(share) }),
        element("td", { className: "bar" }, element("meter", { min: 0, max: 1, value: share, ariaHidden: "true" })))));
  const rest = probabilities.slice(MOST_CLASSES);
  part("more").textContent = rest.length ? `and ${rest.length} more classes, none above ${percent(rest[0][1])}` : "";
  part("near").hidden = answer.nearest.length === 0;
  part("neighbours").replaceChildren(
    ...answer.nearest.map((near) => {
      const image = element("img", { alt: "Training image of " + near.label });
      picture(image, near.image);
      return element("li", { title: near.id }, image, near.label,
        element("small", { textContent: "similarity " + near.similarity.toFixed(2) }));
    }));
  part("result").hidden = false;
  say("", ""); // the focus that follows reads the answer out
  part("result").focus({ preventScroll: true });
  part("result").scrollIntoView({ block: "nearest" });
}

async function send(image, name) {
  const mine = ++latest;
  part("result").hidden = true;
  if (image.size > limits.bytes) {
    say("", `This image is larger than ${Math.floor(limits.bytes / 2 ** 20)} MB: choose a smaller one.`);
    return;
  }
  say("Analysing the image…", "");
  const form = new FormData();
  form.append("image", image, name);
  try {
    const reply = await fetch("/explain", { method: "POST", body: form, signal: AbortSignal.timeout(PATIENCE) });
    const answer = await reply.json();
    if (mine !== latest) return;
    if (reply.ok) show(answer);
    else say("", answer.error);
  } catch (error) {
    if (mine === latest) say("", "The server cannot be reached or did not answer in time. Is it still running?");
  }
}

function sendFirst(files) {
  const image = [...files].find((file) => file.type.startsWith("image/")) || files[0];
  if (image) send(image, image.name || "pasted");
}

async function openCamera() {
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say("", "The camera cannot be used: " + error.message);
    return;
  }
  part("video").srcObject = camera;
  part("viewfinder").hidden = false;
  part("camera").hidden = true;
  part("shoot").focus();
}

function closeCamera() {
  camera.getTracks().forEach((track) => track.stop());
  part("video").srcObject = null;
  part("viewfinder").hidden = true;
  part("camera").hidden = false;
  part("camera").focus();
}

function shoot() {
  const video = part("video");
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  closeCamera();
  canvas.toBlob((image) => send(image, "photograph.png"), "image/png");
}

part("file").addEventListener("change", (event) => {
  sendFirst(event.target.files);
  event.target.value = ""; // the same file may be chosen again
});
document.addEventListener("paste", (event) => sendFirst(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  part("drop").classList.add("over");
});
document.addEventListener("dragleave", () => part("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  part("drop").classList.remove("over");
  sendFirst(event.dataTransfer.files);
});
part("camera").hidden = !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
part("camera").addEventListener("click", openCamera);
part("shoot").addEventListener("click", shoot);
part("close").addEventListener("click", closeCamera);

fetch("/health").then((reply) => reply.json()).then((state) => {
  limits = state.limits;
  part("run").textContent = state.run;
  document.title = state.run;
  part("about").textContent = `A classifier of ${state.classes.length} classes: ` +
    state.classes.slice(0, MOST_CLASSES).join(", ") + (state.classes.length > MOST_CLASSES ? ", …" : "");
});
