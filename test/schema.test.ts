import { readFile, writeFile } from 'node:fs/promises'
import t from 'tap'
// @ts-expect-error: no types
import { generate, sealed } from '../src/sql/sources.js'
import { buildGateway } from './helper/app.js'
import { dumpSchema } from './helper/schema-dump.js'

const file = new URL('schema.txt', import.meta.url)

t.test('the SQL that is built in is that of the files', async t => {
  const read = async (name: string) => (await readFile(new URL(`../src/sql/${name}`, import.meta.url), 'utf8')).replaceAll('\r\n', '\n')
  t.equal(generate(), await read('index.ts'))
  t.equal(sealed(), await read('functions.sql'))
})

// A change of the schema shows in review, and none comes unnoticed: a released migration is never edited.
t.test('the migrated schema is the one that is written down', async t => {
  const app = await buildGateway(t)
  const schema = await dumpSchema(app.pg)
  if (process.env.UPDATE_SCHEMA === '1') await writeFile(file, schema)
  const expected = (await readFile(file, 'utf8')).replaceAll('\r\n', '\n')
  t.equal(schema, expected, 'test/schema.txt; if the change is meant: UPDATE_SCHEMA=1 npx tap test/schema.test.ts')
})
