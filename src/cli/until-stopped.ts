/**
 * Waiting for the end of a program that runs until it is told to stop.
 */

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Resolves at SIGINT, SIGTERM or SIGHUP, or after `seconds` where that is above 0. A second signal no longer waits for anything
 * to be cleaned up: it ends the process as it would without us.
 */
export function untilStopped(seconds: number): Promise<void> {
  return new Promise((resolve) => {
    const stop = () => {
      clearTimeout(timer);
      for (const signal of SIGNALS) process.off(signal, stop);
      resolve();
    };
    const timer = seconds > 0 ? setTimeout(stop, seconds * 1000) : undefined;
    for (const signal of SIGNALS) process.on(signal, stop);
  });
}
