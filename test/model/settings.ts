/** How many sequences are run: MODEL_RUNS, or a number that takes well under a minute. */
export const runs = Number(process.env.MODEL_RUNS ?? 200)

/** The seed of their random numbers: MODEL_SEED, or another one each time. Tests print it. */
export const seed = Number(process.env.MODEL_SEED ?? Date.now() % 2 ** 31)
