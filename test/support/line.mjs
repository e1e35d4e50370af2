// SPDX-License-Identifier: Apache-2.0
// What both kinds of long-lived connection in agent.mjs do: gather what comes, and wait for it.

export class Line {
  constructor(socket) {
    this.socket = socket;
    this.received = "";
    this.error = undefined;
    this.wake = () => {};
    socket.setNoDelay(true).setEncoding("latin1");
    socket.on("data", (text) => {
      this.received += text;
      this.wake();
    });
    socket.on("error", (error) => {
      this.error ??= error.code ?? error.message;
      this.wake();
    });
    socket.on("close", () => {
      this.error ??= "closed";
      this.wake();
    });
  }

  /** Throws what ended the connection, or that it took too long. */
  async until(done, timeoutMs) {
    const deadline = Date.now() + timeoutMs;
    while (!done()) {
      if (this.error) throw new Error(this.error);
      const left = deadline - Date.now();
      if (left <= 0) throw new Error("timeout");
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, left);
        this.wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }
}
