// The parts that both JavaScript drivers share: arguments, output and commands. driver.py describes
// the lines of output, the commands and the exit codes.

import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

const REFUSED = 3;
const ENDED = 4;

/** The arguments of all drivers, `more` arguments of this one, and the key. */
export function settings(more = {}) {
  const { values } = parseArgs({
    options: {
      url: { type: "string" },
      subscribe: { type: "string", default: "" },
      seconds: { type: "string", default: "60" },
      ...more,
    },
  });
  const key = process.env.POLYGON_API_KEY;
  if (!values.url || !key) {
    throw new Error("expected --url ws://HOST:PORT and POLYGON_API_KEY");
  }
  setTimeout(() => {
    console.error(`still running after ${values.seconds} s`);
    process.exit(1);
  }, Number(values.seconds) * 1000).unref();
  return { ...values, key };
}

/** Writes one line of output, and then calls `done` if there is one. */
function say(line, done) {
  process.stdout.write(`${JSON.stringify(line)}\n`, done);
}

/** Reports a frame, and ends the driver if it says that the key was refused. */
export function frame(text) {
  say({ frame: text });
  const [first] = JSON.parse(text);
  if (first?.status === "auth_failed") {
    say({ refused: { by: first.status, message: first.message } }, () => process.exit(REFUSED));
  }
  return first;
}

/** Reports that the connection is gone, and ends the driver. */
export function ended(why) {
  say({ ended: why }, () => process.exit(ENDED));
}

/** Sends the commands, and ends the driver when the input ends. */
export async function execute(send) {
  for await (const line of createInterface({ input: process.stdin })) {
    const [action, params] = line.trim().split(" ");
    if (action !== "subscribe" && action !== "unsubscribe") {
      throw new Error(`unknown command ${action}`);
    }
    send(command(action, params));
  }
  process.exit(0);
}

/** One command of the protocol. */
export function command(action, params) {
  return JSON.stringify({ action, params });
}
