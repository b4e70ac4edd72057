// Copies the address of the page, and writes into it what it leaves to the moment. Where the browser does not let pages write to the clipboard, the address is shown.
export default function ({ data, parentElement }) {
  const button = parentElement.querySelector("button");
  const label = button.firstElementChild;
  button.title = "Copy the address: it holds the runs, the baseline and every choice of this page";
  button.onclick = async () => {
    const address = new URL(location.href);
    for (const [name, value] of Object.entries(data)) if (!address.searchParams.has(name)) address.searchParams.set(name, value);
    const link = address.href.replaceAll("%2C", ",");
    try {
      await navigator.clipboard.writeText(link);
      label.textContent = "Link copied ✓";
    } catch {
      window.prompt("The address of this comparison", link);
      return;
    }
    setTimeout(() => { label.textContent = "Share"; }, 2500);
  };
}
