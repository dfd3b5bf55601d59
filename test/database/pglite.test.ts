// not on Citus: about PGlite
// needs a real server
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { writeImage } from '../helper/pglite.js'

const folder = new URL('../', import.meta.url)
// All rooms: npm run test:matrix -- --database=pglite
const rooms = ['ledger', 'database']
// The marker excludes this file too: it must not run itself.
const marker = /^\/\/ (needs (a real server|no database)|refused before the database is asked|about HTTP, not the database)$/m

const timeout = 900_000
// The first sets the limit of this process, the second that of the test runner.
t.setTimeout(timeout)
t.comment(`timeout=${timeout}`)

// The behaviour of the ledger is the same on PGlite. What needs more than its one backend says so with the marker. All in
// this process: loading the code once more for each file takes longer than many of them do.
const image = join(t.testdir(), 'pglite.tar')
await writeImage(image)
Object.assign(process.env, { TEST_PGLITE: '1', TEST_PGLITE_IMAGE: image })
for (const name of await behaviourTests()) {
  t.comment(`test/${name}, on PGlite`)
  await import(new URL(name, folder).href)
}

async function behaviourTests (): Promise<string[]> {
  const found = await Promise.all(rooms.map(async room =>
    (await readdir(new URL(room, folder))).map(name => `${room}/${name}`)))
  const names = found.flat().filter((name) => name.endsWith('.test.ts'))
  const sources = await Promise.all(names.map((name) => readFile(new URL(name, folder), 'utf8')))
  return names.filter((_, index) => !marker.test(sources[index]!))
}
