import { chargedByLibrary } from '../contenders/library.js'
import { query } from '../databases.js'

/** What the database has, compared with what was acknowledged. */
export interface Checked {
  /** Acknowledged calls without a usage record. */
  lost: number
  /** Usage records beyond those of the acknowledged calls. */
  double: number
  /** Whether each table has the same sum as the usage records. */
  sums: boolean
  deadlocks: number
  /**
   * The usage records that were read for each charge. It is below 0.1 unless a session looks up keys by an index that does not
   * have them, and so reads all records of the account.
   */
  readPerCharge: number
}

/** Compares a database with the number of acknowledged calls, each of one credit and with a key of its own. */
export async function check (connectionString: string, acknowledged: number): Promise<Checked> {
  const [{ read }] = await query(connectionString, `
    select sum(idx_tup_read)::float as read from pg_stat_user_indexes where relname = 'ai_credit_usage'`)
  const [{ records, keys }] = await query(connectionString, `
    select count(*)::int as records, count(distinct idempotency_key)::int as keys from ai_credit_usage`)
  const [{ deadlocks }] = await query(connectionString,
    'select deadlocks::int from pg_stat_database where datname = current_database()')
  const sums = await chargedByLibrary(connectionString)
  return {
    lost: Math.max(0, acknowledged - keys),
    double: Math.max(0, records - keys, records - acknowledged),
    sums: sums.every(sum => sum === records),
    deadlocks,
    readPerCharge: read / acknowledged
  }
}
