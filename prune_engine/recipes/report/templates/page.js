"use strict";
for (const spread of document.querySelectorAll(".spread")) {
  const frames = JSON.parse(document.getElementById(spread.dataset.frames).textContent);
  const slider = spread.querySelector("input");
  const paths = spread.querySelectorAll(".marks path");
  const title = spread.querySelector("svg title");
  const words = title.textContent.split(", epoch ")[0];
  const [low, high] = frames.ys;
  const marks = spread.querySelectorAll(".axes .up");
  slider.addEventListener("input", () => {
    const epoch = frames.epochs[slider.value];
    const top = frames.tops[slider.value];
    const y = (share) => (low + (share / top) * (high - low)).toFixed(1);
    marks.forEach((mark, at) => (mark.textContent = frames.ticks[slider.value][at]));
    frames.shares[slider.value].forEach((shares, line) => {
      const points = shares.flatMap((share, at) => [
        `${frames.xs[at]} ${y(share)}`,
        `${frames.xs[at + 1]} ${y(share)}`,
      ]);
      paths[line].setAttribute("d", "M" + points.join("L"));
    });
    spread.querySelector("output").textContent = epoch;
    slider.setAttribute("aria-valuetext", `epoch ${epoch}`);
    title.textContent = `${words}, epoch ${epoch}. The slider chooses the epoch.`;
  });
}
const button = document.getElementById("theme");
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => root.classList.contains("dark") || (system.matches && !root.classList.contains("light"));
const told = () => button.setAttribute("aria-pressed", String(isDark()));
button.hidden = false;
button.addEventListener("click", () => {
  const dark = !isDark();
  root.classList.toggle("dark", dark);
  root.classList.toggle("light", !dark);
  told();
});
system.addEventListener("change", told);
told();
