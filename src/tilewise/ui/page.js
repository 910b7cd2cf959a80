// Keys of the web chat, and names for buttons that gradio gives none.
// Keys are not taken from whoever types, but for Escape, which stops an answer.
() => {
  const click = (selector) => document.querySelector(selector)?.click();
  const tab = (number) => document.querySelectorAll("[role=tab]")[number]?.click();
  const typing = (element) => element.matches("input, textarea, [contenteditable=true]");

  document.addEventListener("keydown", (event) => {
    const stop = document.querySelector("#ask .stop-button");
    if (event.key === "Escape" && stop) {
      stop.click();
    } else if (event.altKey && event.code === "KeyN") {
      click("#new");
    } else if (event.altKey && /^Digit[123]$/.test(event.code)) {
      tab(Number(event.code.at(-1)) - 1);
    } else if (event.key === "/" && !typing(event.target)) {
      document.querySelector("#ask textarea")?.focus();
    } else {
      return;
    }
    event.preventDefault();
  });

  const name = () => {
    for (const button of document.querySelectorAll("button:not([aria-label]):has(.image-frame img)")) {
      button.setAttribute("aria-label", "Show the picture large");
    }
  };
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
}
