import { AdoptionError, AdoptionTooLongError } from '../../errors.js'
import { adoption as steps } from '../../sql/index.js'
import type { Connection, Queryable } from './types.js'
import { runReadCommitted } from './read-committed.js'
import { inSchema } from './schema.js'

const PROBLEMS = 'FC001' // the SQLSTATE of the error that check.sql raises

const PART = 50_000 // records per transaction

// Less than half of the speed measured on a busy machine (docs/operations.md), because other machines may be slower.
const RECORDS_PER_SECOND = 2500

const ALL = 'from :"schema".ai_credit_usage'
const NONE = 'where false'

const UNFILLED = `
  from :"schema".ai_credit_adoption where id operator(pg_catalog.>) coalesce((
    select value::bigint from :"schema".ai_credit_settings
    where name::pg_catalog.text operator(pg_catalog.=) 'adopted_to'::pg_catalog.text), '-9223372036854775808'::bigint)`

const UNSUMMED = `
  from :"schema".ai_credit_usage where id operator(pg_catalog.<=) (
    select value::bigint from :"schema".ai_credit_settings
    where name::pg_catalog.text operator(pg_catalog.=) 'unsummed_to'::pg_catalog.text)`

/** The progress of an adoption, in which the library takes over tables that existed before it. */
export interface AdoptionProgress {
  /**
   * The current step. `columns`: the columns get their types. `records`: each usage record gets its place in the order of
   * its account. `days`: the records are summed up into daily usage.
   */
  step: 'columns' | 'records' | 'days'
  /** How many usage records this step has completed. */
  done: number
  /** How many usage records this step had to complete when it began. */
  total: number
}

/** The input of `migrate`. */
export interface MigrateInput {
  /** Called with the progress, if tables that existed before the library are adopted. */
  onProgress?: (progress: AdoptionProgress) => void
}

/** An adoption: the library takes over tables that existed before it. */
export interface Adoption {
  connection: Connection
  schema: string
  timeZone: string
  /** The seconds that the adoption may take; undefined: no limit. */
  seconds?: number | undefined
  /** Called with the progress. */
  onProgress?: ((progress: AdoptionProgress) => void) | undefined
}

interface State {
  /** Whether there are tables to adopt, and the adoption has not begun. */
  originals: boolean
  /** Whether there is a table of usage records. */
  recorded: boolean
  /** Whether the first step of the adoption is done, and the last one is not. */
  begun: boolean
  /** Whether the place of each usage record in the order of its account has been computed. */
  ordered: boolean
}

/**
 * Begins to adopt the existing tables, if there are any: does the steps that come before the first numbered table file. If
 * it throws AdoptionError or AdoptionTooLongError, it has changed nothing.
 */
export async function beginAdoption (adoption: Adoption): Promise<void> {
  const { originals, recorded } = await readState(adoption)
  if (originals) {
    const records = recorded ? ALL : NONE
    await unlessDone(adoption, async () => {
      await check(adoption)
      await refuseTooMany(adoption, records)
      report(adoption, 'columns', 0, await count(adoption, records))
      await run(adoption, steps.columns)
    })
  }
  const { begun, ordered } = await readState(adoption)
  if (begun && !ordered) await unlessDone(adoption, () => run(adoption, steps.order))
}

/** Does the steps of an adoption that come after the first numbered table file, to the last. Throws AdoptionTooLongError. */
export async function endAdoption (adoption: Adoption): Promise<void> {
  if (!(await readState(adoption)).begun) return
  await unlessDone(adoption, async () => {
    await refuseTooMany(adoption, UNFILLED)
    await run(adoption, steps.records)
    await inParts(adoption, 'records', UNFILLED, 'ai_credit_adopt_records')
    await run(adoption, steps.finish)
  })
}

/** Adds the records that are older than the table of daily usage to it. Throws AdoptionTooLongError. */
export async function sumDays (adoption: Adoption): Promise<void> {
  await refuseTooMany(adoption, UNSUMMED)
  await inParts(adoption, 'days', UNSUMMED, 'ai_credit_sum_days')
}

/** Returns whether there are records that are older than the table of daily usage and not yet summed up in it. */
export async function areDaysMissing (db: Queryable, schema: string): Promise<boolean> {
  const { rows } = await db.query(inSchema(`select ${UNSUMMED} limit 1`, schema))
  return rows.length > 0
}

// Several processes may adopt at once. Each step waits for the lock that the steps of the others take. It fails if another
// process has done it meanwhile. That shows in the state of the adoption, which has then changed.
async function unlessDone (adoption: Adoption, work: () => Promise<unknown>) {
  const before = await readState(adoption)
  try {
    await work()
  } catch (error) {
    const after = await readState(adoption)
    if (JSON.stringify(after) === JSON.stringify(before)) throw error
  }
}

async function check (adoption: Adoption) {
  try {
    await run(adoption, steps.check)
  } catch (error) {
    const { code, message } = error as { code?: unknown, message: string }
    throw code === PROBLEMS ? new AdoptionError(message) : error
  }
}

async function refuseTooMany (adoption: Adoption, records: string) {
  const { seconds, schema, timeZone } = adoption
  if (seconds === undefined) return
  const most = Math.floor(seconds * RECORDS_PER_SECOND)
  if (await count(adoption, `${records} limit ${most + 1}`) > most) throw new AdoptionTooLongError(seconds, schema, timeZone)
}

async function inParts (adoption: Adoption, name: AdoptionProgress['step'], records: string, part: string) {
  const { connection, schema } = adoption
  const total = await count(adoption, records)
  let done = 0
  for (let left = total; left > 0;) {
    const { rows: [row] } = await runReadCommitted(connection, () => connection.query({
      text: inSchema(`select :"schema".${part}(${PART}::integer)::integer as records`, schema)
    }))
    left = row.records // also 0 if other processes have done the rest
    done += left
    if (left > 0) report(adoption, name, done, total)
  }
}

function report ({ onProgress }: Adoption, step: AdoptionProgress['step'], done: number, total: number) {
  onProgress?.({ step, done, total })
}

async function count (adoption: Adoption, records: string): Promise<number> {
  const { rows: [row] } = await run(adoption, `select pg_catalog.count(*)::integer as count from (select ${records}) records`)
  return row.count
}

async function readState (adoption: Adoption): Promise<State> {
  const { rows: [state] } = await run(adoption, steps.state)
  const is = (name: keyof State) => state[name] === 'true'
  return { originals: is('originals'), recorded: is('recorded'), begun: is('begun'), ordered: is('ordered') }
}

async function run ({ connection, schema }: Adoption, sql: string) {
  try {
    return await connection.query({ text: inSchema(sql, schema) })
  } catch (error) {
    await connection.query({ text: 'rollback' })
    throw error
  }
}
