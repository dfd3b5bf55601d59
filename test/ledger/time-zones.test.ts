// not on Citus: the time zone is settled when the tables are distributed
import t from 'tap'
import { createLedger, type Queryable } from '../../src/index.js'
import { settleTimeZone } from '../../src/ledger/database/time-zone.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'

const calls = { userId: 'ann', credits: 1, operation: 'chat' }

// Of each pair one name is the one that JavaScript uses today, and the other the one that it will use.
const pairs = [
  ['Asia/Calcutta', 'Asia/Kolkata'], ['Asia/Kolkata', 'Asia/Calcutta'], ['Europe/Kiev', 'Europe/Kyiv'], ['Europe/Kyiv', 'Europe/Kiev'],
  ['UTC', 'Etc/UTC'], ['Etc/UTC', 'UTC'], ['UTC', 'utc'], ['utc', 'UTC'], ['UTC', 'Zulu'], ['US/Eastern', 'America/New_York'],
  ['America/New_York', 'america/new_york'], ['Asia/Kolkata', 'IST']
]

for (const [first, second] of pairs) {
  t.test(`a database that keeps its days in ${first} takes a process that says ${second}`, async t => {
    const pool = createPool(t, await createLedgerDatabase(t))
    await createLedger(pool, { timeZone: first!, prepare: !pglite }).migrate()
    const ledger = createLedger(pool, { timeZone: second!, prepare: !pglite })
    await ledger.migrate()
    await ledger.deduct(calls)
    t.match(await ledger.history('ann'), { entries: [{ used: 1 }] })
  })
}

const different = [
  ['Europe/Berlin', 'Europe/London'], ['UTC', 'Europe/London'], ['Europe/Bucharest', 'Europe/Chisinau'],
  ['America/New_York', 'America/Detroit'], ['UTC', 'Etc/GMT+1'], ['Europe/Kyiv', 'Europe/Helsinki']
]

t.test('other zones are refused, also where they agree today', async t => {
  for (const [first, second] of different) {
    const pool = createPool(t, await createLedgerDatabase(t))
    await createLedger(pool, { timeZone: first!, prepare: !pglite }).migrate()
    await t.rejects(createLedger(pool, { timeZone: second!, prepare: !pglite }).balance('ann'), {
      code: 'FST_CREDITS_TIME_ZONE', message: `Option timeZone is ${second}, and this database keeps its days in ${first}`
    })
  }
})

t.test('a name that PostgreSQL does not know is another name of the zone there, for every call', { skip: pglite }, async t => {
  const names = ['Asia/Kolkata', 'Europe/Berlin', 'Unknown/To_JavaScript']
  const pool = createPool(t, await createLedgerDatabase(t))
  const schema = 'public'
  t.equal(await settleTimeZone(knowingOnly(names, pool), schema, 'Asia/Calcutta'), 'Asia/Kolkata')
  t.equal(await settleTimeZone(knowingOnly(names, pool), schema, 'Asia/Calcutta'), 'Asia/Kolkata', 'once it is kept')
  t.strictSame((await pool.query("select value from ai_credit_settings where name = 'time_zone'")).rows, [{ value: 'Asia/Kolkata' }])
  await t.rejects(settleTimeZone(knowingOnly(names, pool), schema, 'Europe/Berlin'), { code: 'FST_CREDITS_TIME_ZONE' })
  await t.rejects(settleTimeZone(knowingOnly(names, pool), schema, 'America/Lima'), {
    code: 'FST_CREDITS_INVALID_OPTION', message: 'Option timeZone is America/Lima, which PostgreSQL does not know'
  })
})

/** A server whose tzdata leaves out old names, as some distributions' do, or new ones, as old ones do. */
function knowingOnly (names: string[], pool: Queryable): Queryable {
  return {
    async query (text, values) {
      const { rows } = await pool.query(text, values)
      return { rows: text.includes('pg_timezone_names') ? names.map(name => ({ name })) : rows }
    }
  }
}
