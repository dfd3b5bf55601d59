import { parseArgs } from 'node:util'

/** The arguments of the command line. */
export interface Arguments {
  /** Print JSON instead of tables. */
  json: boolean
  /** How many times everything is measured. */
  rounds: number
  /** How long one measurement lasts, in seconds. */
  seconds: number
  /**
   * 'programmatic': only calls in the process; 'processes': only calls from several processes; 'http': only HTTP; 'charging':
   * only a charged and an uncharged route.
   */
  only: string | undefined
  /** Compare only PostgreSQL with a Citus cluster, which CITUS_DATABASE_URL names. */
  citus: boolean
}

/** Reads the command line: --json --rounds=3 --seconds=1 --only=programmatic|processes|http|charging --citus. */
export function readArguments (): Arguments {
  const { values } = parseArgs({
    options: {
      json: { type: 'boolean', default: false },
      rounds: { type: 'string', default: '3' },
      seconds: { type: 'string', default: '1' },
      only: { type: 'string' },
      citus: { type: 'boolean', default: false }
    }
  })
  return { json: values.json, rounds: Number(values.rounds), seconds: Number(values.seconds), only: values.only, citus: values.citus }
}
