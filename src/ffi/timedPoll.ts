// SPDX-License-Identifier: Apache-2.0
import { constants } from "node:os";
import type { NativeFunction, PollEvents, PollHandle } from "./types.ts";

const POLLIN = 1;
const POLLOUT = 4;
const POLLERR = 8;
const POLLHUP = 16;
const POLLNVAL = 32;

const POLL_INTERVAL_MS = 5;

/**
 * Asks poll(2) by a timer. ffi-napi cannot reach the event loop, and a thread that blocks in poll(2) would keep
 * the process from ending.
 */
export class TimedPoll implements PollHandle {
  readonly #timer: NodeJS.Timeout;

  constructor(
    poll: NativeFunction<"i32", readonly ["pointer", "u64", "i32"]>,
    fd: number,
    events: PollEvents,
    onReady: (error: number, events: Required<PollEvents>) => void,
  ) {
    const pollfd = Buffer.alloc(8);
    pollfd.writeInt32LE(fd, 0);
    pollfd.writeInt16LE((events.readable ? POLLIN : 0) | (events.writable ? POLLOUT : 0), 4);
    this.#timer = setInterval(() => {
      // A negative result is EINTR or ENOMEM: the next turn asks again.
      if (poll(pollfd, 1, 0) <= 0) return;
      const ready = pollfd.readInt16LE(6);
      if (ready & POLLNVAL) {
        this.close();
        onReady(constants.errno.EBADF, { readable: false, writable: false });
        return;
      }
      // Errors and hang-ups are for the next read to report.
      onReady(0, {
        readable: (ready & (POLLIN | POLLERR | POLLHUP)) !== 0,
        writable: (ready & POLLOUT) !== 0,
      });
    }, POLL_INTERVAL_MS);
  }

  ref(): void {
    this.#timer.ref();
  }

  unref(): void {
    this.#timer.unref();
  }

  close(): void {
    clearInterval(this.#timer);
  }
}
