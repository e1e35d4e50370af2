// SPDX-License-Identifier: Apache-2.0
// What systemd wants to know (sd_notify(3)): started, reloading, stopping, and that we are alive.

import { sendUnixDatagram } from "../libc/unixSocket.ts";
import type { Logger } from "../log.ts";

export interface NotifyEnvironment {
  NOTIFY_SOCKET?: string | undefined;
  WATCHDOG_USEC?: string | undefined;
  WATCHDOG_PID?: string | undefined;
}

/** Does nothing where nobody asked to be told. */
export class Notifier {
  readonly #socket: string | undefined;
  /** Between two signs of life; undefined: nobody watches. */
  readonly #intervalMs: number | undefined;
  readonly #log: Logger;
  #timer: NodeJS.Timeout | undefined;
  /** As was said already. */
  #failing = false;

  constructor(environment: NotifyEnvironment, log: Logger, pid = process.pid) {
    this.#socket = environment.NOTIFY_SOCKET || undefined;
    this.#intervalMs = watchdogInterval(environment, pid);
    this.#log = log;
  }

  ready(status: string): void {
    this.#send(`READY=1\nSTATUS=${oneLine(status)}`);
  }

  /** Answered by `ready` when it is done. */
  reloading(): void {
    const now = process.hrtime.bigint() / 1000n;
    this.#send(`RELOADING=1\nMONOTONIC_USEC=${now}\nSTATUS=Reloading`);
  }

  stopping(): void {
    this.#send("STOPPING=1\nSTATUS=Stopping");
  }

  status(text: string): void {
    this.#send(`STATUS=${oneLine(text)}`);
  }

  /** Signs of life from now on, as long as `alive` says so. */
  watch(alive: () => boolean): void {
    if (this.#intervalMs === undefined || this.#timer) return;
    this.#timer = setInterval(() => {
      if (alive()) this.#send("WATCHDOG=1");
    }, this.#intervalMs);
  }

  close(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #send(text: string): void {
    if (this.#socket === undefined) return;
    try {
      sendUnixDatagram(this.#socket, Buffer.from(`${text}\n`));
      this.#failing = false;
    } catch (error) {
      // Whoever started us has gone, or is busy: nothing that should stop us.
      if (!this.#failing)
        this.#log.warning("cannot notify the service manager", { error: (error as Error).message });
      this.#failing = true;
    }
  }
}

/** Half of what systemd allows, in ms; undefined unless it watches this process. */
export function watchdogInterval(environment: NotifyEnvironment, pid: number): number | undefined {
  const { NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID } = environment;
  const microseconds = Number(WATCHDOG_USEC);
  if (!NOTIFY_SOCKET || !(microseconds > 0)) return undefined;
  if (WATCHDOG_PID && Number(WATCHDOG_PID) !== pid) return undefined;
  return Math.max(1, microseconds / 2000);
}

function oneLine(text: string): string {
  return text.replaceAll("\n", " ");
}
