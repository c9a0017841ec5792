// Drives the vendor's JavaScript client, under either of its names, as its published examples do:
// it subscribes when the first element of a frame is the answer to auth. driver.py describes its
// output.
//
//     POLYGON_API_KEY=... node official.mjs --package @massive.com/client-js \
//         --url ws://127.0.0.1:8765 --subscribe T.AAPL

import { command, ended, execute, frame, settings } from "./driver.mjs";

const { key, url, subscribe, market, package: name } = settings({
  package: { type: "string" },
  market: { type: "string", default: "stocks" },
});
const { websocketClient } = await import(name);

const socket = websocketClient(key, url)[market]();
socket.onmessage = ({ data }) => {
  const first = frame(data);
  if (first?.status === "auth_success" && subscribe) {
    socket.send(command("subscribe", subscribe));
  }
};
socket.onclose = ({ code, reason }) => ended(`${code} ${reason}`);
socket.onerror = (error) => console.error("error:", error.message ?? error);
await execute((text) => socket.send(text));
