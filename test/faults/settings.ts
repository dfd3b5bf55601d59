/** Whether this is the long form, `npm run test:faults`. */
export const long = process.env.FAULTS_LONG !== undefined

/** Where random numbers begin: FAULTS_SEED, or another one each time. Tests print it. */
export const seed = Number(process.env.FAULTS_SEED ?? Date.now() % 2 ** 31)

/** How many rounds of a kind there are: FAULTS_ROUNDS, or as many as the form of the test has. */
export function rounds (short: number, inLongForm: number): number {
  return Number(process.env.FAULTS_ROUNDS ?? (long ? inLongForm : short))
}
