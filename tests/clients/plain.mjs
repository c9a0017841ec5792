// Drives plain `ws` as many programs use it: authenticates and subscribes at once, without waiting
// for any answer. driver.py describes its output.
//
//     POLYGON_API_KEY=... node plain.mjs --url ws://127.0.0.1:8765 --subscribe T.AAPL

import WebSocket from "ws";

import { command, ended, execute, frame, settings } from "./driver.mjs";

const { key, url, subscribe } = settings();

const socket = new WebSocket(`${url}/stocks`);
socket.on("open", () => {
  socket.send(command("auth", key));
  if (subscribe) {
    socket.send(command("subscribe", subscribe));
  }
});
socket.on("message", (data) => frame(data.toString()));
socket.on("close", (code, reason) => ended(`${code} ${reason}`));
socket.on("error", (error) => console.error("error:", error.message));
await execute((text) => socket.send(text));
