import { inSchema } from '../src/ledger/database/schema.js'
import { functionScript } from '../src/ledger/database/migrate.js'
import { citusTables, tables } from '../src/sql/index.js'
// @ts-expect-error: no types
import { withoutPsql } from '../src/sql/sources.js'

/** The scripts that make the ledger's tables and functions in the schema public. */
export const ledgerScripts = [...tables.map(({ sql }) => sql), functionScript(false)].map(sql => inSchema(sql, 'public'))

/** The same, distributed by Citus. */
export const citusScripts = [...tables.map(({ sql }) => sql), citusTables.replace(":'time_zone'", "'UTC'"), functionScript(true)]
  .map(sql => inSchema(sql, 'public'))

/** The script that partitions the usage records by month, in the schema public, with psql's commands already applied. */
export const partitionScript: string = inSchema(withoutPsql('../../docs/partition-usage.sql'), 'public')
