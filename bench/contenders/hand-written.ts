import type pg from 'pg'
import { ACCOUNTS, HOT, openPool, PLENTY, query } from '../databases.js'
import { charge, type Contender } from './contender.js'

/** SQL that makes the tables that a gateway without the library would have. */
export const createTables = `
  create table accounts (user_id varchar primary key, total bigint not null, used bigint not null default 0);
  create table usage_records (
    id bigserial primary key, user_id varchar not null, credits bigint not null, operation varchar not null,
    metadata jsonb not null, created_at timestamptz not null default now());
  create index on usage_records (user_id, created_at);
  insert into accounts (user_id, total)
  select 'user' || n, ${PLENTY} from generate_series(0, ${ACCOUNTS - 1}) n union all select '${HOT}', ${PLENTY}`

/** Returns the credits charged according to these tables: by the usage records, and by the accounts. */
export async function chargedByTables (connectionString: string): Promise<number[]> {
  const [row] = await query(connectionString, `
    select (select coalesce(sum(credits), 0) from usage_records) as records, (select sum(used) from accounts) as accounts`)
  return Object.values(row).map(Number)
}

/** Charges an account in a transaction that a gateway without the library would have. */
export async function chargeByHand (pool: pg.Pool, userId: string): Promise<void> {
  const client = await pool.connect()
  try {
    await client.query('begin')
    await client.query('insert into accounts (user_id, total) values ($1, $2) on conflict do nothing', [userId, PLENTY])
    const { rows: [account] } = await client.query('select total, used from accounts where user_id = $1 for update', [userId])
    if (account.total - account.used < charge.credits) throw new Error('Insufficient credits')
    await client.query('update accounts set used = used + $2 where user_id = $1', [userId, charge.credits])
    await client.query('insert into usage_records (user_id, credits, operation, metadata) values ($1, $2, $3, $4)',
      [userId, charge.credits, charge.operation, charge.metadata])
    await client.query('commit')
  } catch (error) {
    await client.query('rollback')
    throw error
  } finally {
    client.release()
  }
}

/** (b) The hand-written transaction. */
export const handWritten: Contender = {
  name: 'hand-written transaction',
  async open (connectionString) {
    await query(connectionString, createTables)
    await query(connectionString, 'vacuum analyze')
    const pool = openPool(connectionString)
    return {
      call: userId => chargeByHand(pool, userId),
      charged: () => chargedByTables(connectionString),
      close: () => pool.end()
    }
  }
}
