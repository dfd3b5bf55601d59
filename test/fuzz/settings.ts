import type { Test } from 'tap'

/** How many requests and calls there are in all: FUZZ_REQUESTS, or a number that takes seconds. */
export const requests = Number(process.env.FUZZ_REQUESTS ?? 2500)

/** The seed of their random numbers: FUZZ_SEED, or another one each time. Tests print it. */
export const seed = Number(process.env.FUZZ_SEED ?? Date.now() % 2 ** 31)

/** Whether there are enough for every case to occur. */
export const thorough = requests >= 100_000

/** Returns how many of them a fuzzer makes. */
export const share = (part: number) => Math.ceil(requests * part)

/** Gives a test file enough time for a slow machine. */
export function allowTime (t: Test): void {
  const timeout = 120_000 + requests * 10
  t.setTimeout(timeout)
  t.comment(`timeout=${timeout}`) // for the test runner, whose limit is meant for a single file
}

/** Milliseconds that a call may take: a slow machine is no outage, and 503 is a failure here. */
export const PATIENCE = 60_000
