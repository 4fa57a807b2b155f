// Opens /docs in headless Chromium, asks for GET /v1/status as a person would, and fails if any
// request would leave this machine.
//
//   NODE_PATH=.../node_modules node .ci/docs.mjs http://127.0.0.1:3001 docs.png profile-folder
import { createRequire } from "node:module";

const [base, picture, profile] = process.argv.slice(2);
const { chromium } = createRequire(process.env.NODE_PATH + "/")("playwright-core");

const context = await chromium.launchPersistentContext(profile, {
  executablePath: "/usr/bin/chromium",
  headless: true,
  viewport: { width: 1280, height: 1600 },
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

const problems = [];
try {
  // Whatever the page asks for goes through here; only this machine is let through.
  let requests = 0;
  await context.route("**/*", (route) => {
    const url = new URL(route.request().url());
    requests += 1;
    if (["127.0.0.1", "localhost"].includes(url.hostname) || url.protocol === "data:") {
      return route.continue();
    }
    problems.push(`a request left this machine: ${url}`);
    return route.abort();
  });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  page.on("pageerror", (error) => problems.push(`the page threw: ${error}`));
  page.on("console", (message) => {
    if (message.type() === "error") problems.push(`the console says: ${message.text()}`);
  });
  page.on("response", (response) => {
    if (response.status() >= 400) problems.push(`${response.status()} for ${response.url()}`);
  });

  await page.goto(`${base}/docs`, { waitUntil: "load" });
  const path = '.opblock-summary-path[data-path="/v1/status"]';
  const block = page.locator(`.opblock-get:has(${path})`).first();
  await block.locator(".opblock-summary-control").click();
  await block.locator(".try-out__btn").click();
  await block.locator("button.execute").click();
  const live = block.locator(".live-responses-table");
  const status = (await live.locator("tr.response .response-col_status").first().innerText()).trim();
  const body = await live.locator("tr.response .response-col_description").first().innerText();
  if (!status.startsWith("200")) problems.push(`GET /v1/status answered ${status}`);
  if (!body.includes("applied_index")) problems.push(`an odd body: ${body.slice(0, 400)}`);
  await block.scrollIntoViewIfNeeded();
  await page.screenshot({ path: picture });
  const operations = await page.locator(".opblock").count();
  console.log(`${requests} requests, all to this machine; ${operations} operations shown;`);
  console.log(`GET /v1/status executed: ${status.split("\n")[0]}; picture in ${picture}`);
} finally {
  await context.close();
}
for (const problem of problems) console.error(`docs: ${problem}`);
process.exit(problems.length ? 1 : 0);
