import { AdoptionError, AdoptionTooLongError } from '../errors.js'
import { adoption as steps } from '../sql/index.js'
import type { Connection, Queryable } from './database.js'
import { runReadCommitted } from './read-committed.js'
import { inSchema } from './schema.js'
import type { AdoptionProgress } from './types.js'

const PROBLEMS = 'FC001' // what check.sql raises

const PART = 50_000 // records of one transaction

// Less than half of what was measured on a busy machine (docs/operations.md), as others may be slower.
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

/** Tables that were there before the library, and how they are adopted. */
export interface Adoption {
  connection: Connection
  schema: string
  timeZone: string
  /** The seconds in which all has to be done; undefined: there is no limit. */
  seconds?: number | undefined
  /** Hears how far it is. */
  onProgress?: ((progress: AdoptionProgress) => void) | undefined
}

interface State {
  /** There are tables to adopt. */
  originals: boolean
  /** Usage records are among them. */
  recorded: boolean
  /** The first step is done, and the last one is not. */
  begun: boolean
  /** Each record's place is worked out. */
  ordered: boolean
}

/**
 * Adopts the tables that are there, if any, up to where the first of the numbered files has its turn. Throws AdoptionError
 * or AdoptionTooLongError, and has changed nothing then.
 */
export async function beginAdoption (adoption: Adoption): Promise<void> {
  const { originals, recorded } = await readState(adoption)
  if (originals) {
    const records = recorded ? ALL : NONE
    await unlessDone(adoption, async () => {
      await check(adoption)
      await refuseTooMany(adoption, records)
      tell(adoption, 'columns', 0, await count(adoption, records))
      await run(adoption, steps.columns)
    })
  }
  const { begun, ordered } = await readState(adoption)
  if (begun && !ordered) await unlessDone(adoption, () => run(adoption, steps.order))
}

/** Goes on with it after that, to its end. Throws AdoptionTooLongError. */
export async function endAdoption (adoption: Adoption): Promise<void> {
  if (!(await readState(adoption)).begun) return
  await unlessDone(adoption, async () => {
    await refuseTooMany(adoption, UNFILLED)
    await run(adoption, steps.records)
    await inParts(adoption, 'records', UNFILLED, 'ai_credit_adopt_records')
    await run(adoption, steps.finish)
  })
}

/** Sums up by day the records that are older than daily usage. Throws AdoptionTooLongError. */
export async function sumDays (adoption: Adoption): Promise<void> {
  await refuseTooMany(adoption, UNSUMMED)
  await inParts(adoption, 'days', UNSUMMED, 'ai_credit_sum_days')
}

/** Whether there are records that are older than daily usage, and not yet summed up. */
export async function areDaysMissing (db: Queryable, schema: string): Promise<boolean> {
  const { rows } = await db.query(inSchema(`select ${UNSUMMED} limit 1`, schema))
  return rows.length > 0
}

// Several processes adopt at once. Each step waits for the lock that the others' steps take, and fails if it was done
// meanwhile: adoption is then further than it was.
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
    left = row.records // 0 also where other processes have done the rest
    done += left
    if (left > 0) tell(adoption, name, done, total)
  }
}

function tell ({ onProgress }: Adoption, step: AdoptionProgress['step'], done: number, total: number) {
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
