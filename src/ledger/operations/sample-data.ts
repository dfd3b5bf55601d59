import type { Call } from '../context.js'
import { functionCall } from '../posting/function-call.js'

const SAMPLE_DATA = functionCall('ai_credit_write_sample_data', ['varchar'])

/** Writes the sample data if the default user has no account yet. */
export async function writeSampleData ({ database, options, deadline }: Call): Promise<void> {
  await database.run({
    name: 'ai_credit_sample_data',
    text: SAMPLE_DATA,
    values: () => [options.defaultUser],
    repeatable: true
  }, { deadline, sentAgainBy: 'database' })
}
