// not on Citus: distributed tables have other keys
import { readFile, writeFile } from 'node:fs/promises'
import t from 'tap'
// @ts-expect-error: no types
import { generate, sealed } from '../../src/sql/sources.js'
import { buildGateway } from '../helper/app.js'
import { dumpSchema } from '../helper/schema-dump.js'

const file = new URL('schema.txt', import.meta.url)

t.test('the SQL that is built in is that of the files', async t => {
  const read = async (name: string) => (await readFile(new URL(`../../src/sql/${name}`, import.meta.url), 'utf8')).replaceAll('\r\n', '\n')
  t.equal(generate(), await read('index.ts'))
  t.equal(sealed(), await read('functions.sql'))
})

// Every change of the schema shows in review, because a released migration must never be edited.
t.test('the migrated schema is the one that is written down', async t => {
  const app = await buildGateway(t)
  const schema = await dumpSchema(app.pg)
  if (process.env.UPDATE_SCHEMA === '1') await writeFile(file, schema)
  const expected = (await readFile(file, 'utf8')).replaceAll('\r\n', '\n')
  t.equal(schema, expected, 'test/database/schema.txt; if the change is meant: UPDATE_SCHEMA=1 npx tap test/database/schema.test.ts')
})

t.test('every table and every function that a library calls says what it is', async t => {
  const app = await buildGateway(t)
  const { rows } = await app.pg.query(`
    select relname as name, obj_description(oid, 'pg_class') as said from pg_class
    where relnamespace = 'public'::regnamespace and relkind in ('r', 'v') and relname like 'ai\\_credit%'
    union all
    select proname, obj_description(oid, 'pg_proc') from pg_proc
    where pronamespace = 'public'::regnamespace and (prosecdef or 'p_caller' = any(proargnames))`)
  t.ok(rows.length > 30)
  t.strictSame(rows.filter(({ said }) => !/^[A-Z].*\.$/.test(said)), [], 'each one a sentence')
})
