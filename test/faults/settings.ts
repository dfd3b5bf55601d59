/** Whether this is the long form, `npm run test:faults`. */
export const long = process.env.FAULTS_LONG !== undefined

/** The seed of random numbers: FAULTS_SEED, or another one each time. Tests print it. */
export const seed = Number(process.env.FAULTS_SEED ?? Date.now() % 2 ** 31)

/** How many rounds of a kind there are: FAULTS_ROUNDS, or a number for this form of the test. */
export function rounds (short: number, inLongForm: number): number {
  return Number(process.env.FAULTS_ROUNDS ?? (long ? inLongForm : short))
}
