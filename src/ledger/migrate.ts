import { MigrationRequiredError, SchemaTooNewError } from '../errors.js'
import { migrations, type Migration } from '../sql/index.js'
import type { Connection, Queryable } from './database.js'

const newest = migrations.at(-1)!.id

/** Refuses a database whose tables are not those that this version of the library works with. */
export async function checkSchema (db: Queryable): Promise<void> {
  const applied = await appliedMigration(db)
  refuseNewer(applied)
  if (applied < newest) throw new MigrationRequiredError(applied, newest, commands(applied))
}

/** Creates or upgrades the tables. Several processes may do so at once. */
export async function migrate (connection: Connection): Promise<void> {
  const applied = await appliedMigration({ query: text => connection.query({ text }) })
  refuseNewer(applied)
  for (const migration of pending(applied)) await apply(connection, migration)
}

function refuseNewer (applied: number) {
  if (applied > newest) throw new SchemaTooNewError(applied, newest)
}

function pending (applied: number) {
  return migrations.filter(({ id }) => id > applied)
}

function commands (applied: number) {
  return pending(applied)
    .map(({ file }) => `psql "$DATABASE_URL" -f node_modules/fastify-ai-credits/src/sql/${file}`)
    .join(' && ')
}

async function appliedMigration (db: Queryable): Promise<number> {
  const { rows: [{ present }] } = await db.query("select to_regclass('ai_credit_migrations') is not null as present")
  if (!present) return 0
  const { rows: [{ id }] } = await db.query('select coalesce(max(id), 0) as id from ai_credit_migrations')
  return id
}

async function apply (connection: Connection, { sql }: Migration) {
  try {
    await connection.query({ text: sql })
  } catch (error) {
    await connection.query({ text: 'rollback' })
    const { constraint } = error as { constraint?: unknown }
    if (constraint !== 'ai_credit_migrations_pkey') throw error // else another process was first
  }
}
