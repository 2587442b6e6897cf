// The document: its elements by name, what it is busy with, and what it has to say.
export function find<Kind extends HTMLElement = HTMLElement>(id: string): Kind {
  return document.getElementById(id) as Kind;
}

export function make<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  properties: Partial<HTMLElementTagNameMap[Name]> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[Name] {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

let waiting = 0;
let fading = 0;

/** Do something that takes a while; what goes wrong is told, and ends it. */
export async function busily(work: () => Promise<void>): Promise<void> {
  find("busy").hidden = ++waiting === 0;
  try {
    await work();
  } catch (error) {
    tell(error instanceof Error ? error.message : String(error));
  } finally {
    find("busy").hidden = --waiting === 0;
  }
}

export function tell(message: string, good = false): void {
  const box = find("message");
  box.textContent = message;
  box.className = good ? "good" : "";
  box.hidden = false;
  clearTimeout(fading);
  if (good) fading = window.setTimeout(() => (box.hidden = true), 4000);
}

/** Hand a file to the browser's downloads. */
export function download(content: Blob, name: string): void {
  const address = URL.createObjectURL(content);
  make("a", { href: address, download: name }).click();
  window.setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** Do something once nobody has asked for it for a moment. */
export function debounced(work: () => void, milliseconds: number): () => void {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = window.setTimeout(work, milliseconds);
  };
}

export function fillSelect(select: HTMLSelectElement, names: string[], chosen: string): void {
  select.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name })));
  select.value = chosen;
}
