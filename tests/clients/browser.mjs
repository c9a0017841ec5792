// Drives a page in Chromium. Reads commands from standard input, one JSON object a line, and answers each with one line:
// {"value": ...} or {"error": "..."}. The commands are the keys of `commands`. Chromium is the program of the first argument.
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const browser = await chromium.launch({
  executablePath: process.argv[2],
  // Chromium has no sandbox for root.
  chromiumSandbox: process.getuid() !== 0,
});
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
// Whatever the page complains about, and every address that it asks.
const complaints = [];
const requests = [];
page.on('console', (message) => {
  if (['error', 'warning'].includes(message.type())) complaints.push(message.text());
});
page.on('pageerror', (error) => complaints.push(String(error)));
page.on('request', (request) => requests.push(request.url()));

const commands = {
  open: async (url) => void (await page.goto(url)),
  evaluate: (expression) => page.evaluate(expression),
  type: async ([selector, text]) => {
    await page.fill(selector, text);
    await page.press(selector, 'Enter');
  },
  scheme: async (colorScheme) => void (await page.emulateMedia({ colorScheme })),
  width: async (width) => void (await page.setViewportSize({ width, height: 900 })),
  screenshot: async (path) => void (await page.screenshot({ path, fullPage: true })),
  complaints: async () => complaints,
  requests: async () => requests,
};

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const [[name, argument]] = Object.entries(JSON.parse(line));
    answer = { value: (await commands[name](argument)) ?? null };
  } catch (error) {
    answer = { error: String(error) };
  }
  console.log(JSON.stringify(answer));
}
await browser.close();
