import { InvalidOptionError, TimeZoneMismatchError } from '../../errors.js'
import type { Queryable } from './types.js'
import { inSchema } from './schema.js'

const KEPT = 'select value as kept from :"schema".ai_credit_settings where name operator(pg_catalog.=) \'time_zone\''

const NAMES = 'select name from pg_catalog.pg_timezone_names order by name'

const KEEP = 'select :"schema".ai_credit_use_time_zone($1::varchar) as kept'

// Finds an instant at which two zones have different times. Instants every 6 hours, from 1970 to 2038, are enough.
const DIFFERENCE = `
  select instant from pg_catalog.generate_series('1970-01-01Z'::pg_catalog.timestamptz, '2038-01-01Z'::pg_catalog.timestamptz,
    '6 hours'::pg_catalog.interval) as instant
  where pg_catalog.timezone($1::pg_catalog.text, instant) operator(pg_catalog.<>) pg_catalog.timezone($2::pg_catalog.text, instant)
  limit 1`

/**
 * Stores the time zone of the database's daily usage, if none is stored yet. Returns the name that is stored, which may be
 * another name of the same zone: many zones have several, and PostgreSQL may know only one of them. Throws
 * TimeZoneMismatchError if another zone is stored, and InvalidOptionError if PostgreSQL does not know the zone.
 */
export async function settleTimeZone (db: Queryable, schema: string, timeZone: string): Promise<string> {
  const { rows: [setting] } = await db.query(inSchema(KEPT, schema))
  if (setting?.kept === timeZone) return timeZone
  const { rows } = await db.query(NAMES)
  const name = nameAmong(rows.map(({ name }) => name), timeZone)
  if (name === undefined) throw new InvalidOptionError('timeZone', `is ${timeZone}, which PostgreSQL does not know`)
  const { rows: [{ kept }] } = await db.query(inSchema(KEEP, schema), [name])
  if (kept === name) return kept // the comparison below takes a third of a second
  const { rows: differences } = await db.query(DIFFERENCE, [kept, name])
  if (differences.length > 0) throw new TimeZoneMismatchError(timeZone, kept)
  return kept
}

// Returns the name in PostgreSQL's spelling, otherwise another name of the same zone.
function nameAmong (names: string[], timeZone: string) {
  const lower = timeZone.toLowerCase()
  const zone = zoneOf(timeZone)
  return names.find(name => name.toLowerCase() === lower) ?? names.find(name => zoneOf(name) === zone)
}

// Returns one name for all names of a zone; undefined for a name that PostgreSQL has and JavaScript does not know.
function zoneOf (name: string) {
  try {
    return new Intl.DateTimeFormat('en', { timeZone: name }).resolvedOptions().timeZone
  } catch {
    return undefined
  }
}
