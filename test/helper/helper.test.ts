// needs a real server
import t from 'tap'
import { createDatabase, createPool } from './database.js'

t.test('tests run on a PostgreSQL server', async (t) => {
  const pool = createPool(t, await createDatabase(t))
  const { rows } = await pool.query('select version()')
  t.match(rows[0].version, /^PostgreSQL \d+/)
  t.notMatch(rows[0].version, /emscripten|wasm/i)
})

t.test('every database starts empty and apart from the others', async (t) => {
  const [one, other] = await Promise.all([createDatabase(t), createDatabase(t)])
  await createPool(t, one).query('create table marks (mark integer)')
  await t.rejects(createPool(t, other).query('select mark from marks'), { code: '42P01' })
})

t.test('a database outlives the later teardowns of its test, and no longer', async (t) => {
  let name = ''
  await t.test('a test with a database', async (t) => {
    const connectionString = await createDatabase(t)
    const pool = createPool(t, connectionString)
    t.teardown(async () => { name = (await pool.query('select current_database() as name')).rows[0].name })
    t.equal((await pool.query('select 1')).rowCount, 1)
  })
  const { rowCount } = await createPool(t, await createDatabase(t)).query('select from pg_database where datname = $1', [name])
  t.match(name, /^test_/)
  t.equal(rowCount, 0)
})
