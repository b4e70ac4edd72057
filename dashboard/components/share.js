// Copies the address of the page. Where the browser does not let pages write to the clipboard, the address is shown.
export default function ({ parentElement }) {
  const button = parentElement.querySelector("button");
  const label = button.firstElementChild;
  button.title = "Copy the address: it holds the runs, the baseline and every choice of this page";
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      label.textContent = "Link copied ✓";
    } catch {
      window.prompt("The address of this comparison", location.href);
      return;
    }
    setTimeout(() => { label.textContent = "Share"; }, 2500);
  };
}
