import { parseArgs } from 'node:util'

/** What the benchmark is told on its command line. */
export interface Arguments {
  /** Print JSON instead of tables. */
  json: boolean
  /** How often everything is measured. */
  rounds: number
  /** How long one measurement lasts. */
  seconds: number
  /** Measure calls of the process alone, HTTP alone, or of HTTP a charged route and an uncharged one. */
  only: string | undefined
}

/** Reads the command line: --json --rounds=3 --seconds=1 --only=programmatic|http|charging. */
export function readArguments (): Arguments {
  const { values } = parseArgs({
    options: {
      json: { type: 'boolean', default: false },
      rounds: { type: 'string', default: '3' },
      seconds: { type: 'string', default: '1' },
      only: { type: 'string' }
    }
  })
  return { json: values.json, rounds: Number(values.rounds), seconds: Number(values.seconds), only: values.only }
}
