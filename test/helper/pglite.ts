import { readFile, writeFile } from 'node:fs/promises'
import { PGlite } from '@electric-sql/pglite'
import { PGLiteSocketServer } from '@electric-sql/pglite-socket'

// Enough for several pools of pg's default size: PGlite refuses further connections instead of letting them wait.
const maxConnections = 50

// A session never forgets the functions that it has compiled, even dropped ones, and every change of the schema visits them.
// After so many tests a new database is faster than emptying this one.
const maxTests = 20

let image: Promise<Blob> | undefined
const tests = new Map<PGlite, number>()
const idle = new Map<PGlite, NodeJS.Timeout>()

/** Starts an empty PGlite in memory, on a port of the loopback interface. */
export async function startPglite () {
  const db = takeIdle() ?? await create()
  tests.set(db, (tests.get(db) ?? 0) + 1)
  const server = new PGLiteSocketServer({ db, port: 0, maxConnections })
  await server.start()
  const drop = async () => {
    await server.stop()
    await recycle(db)
  }
  return { connectionString: `postgresql://postgres@${server.getServerConn()}/postgres?sslmode=disable`, drop }
}

async function create (): Promise<PGlite> {
  image ??= readImage()
  return PGlite.create({ loadDataDir: await image })
}

// Emptying a database takes a tenth of the time of starting another one.
async function recycle (db: PGlite): Promise<void> {
  if (tests.get(db)! >= maxTests) return await close(db)
  try {
    for (const statement of await cleaning(db)) await db.exec(statement)
    keepIdle(db)
  } catch {
    await close(db)
  }
}

// Keeps a database for the next test. Its timers keep the process alive, so it is closed if no further test takes it.
function keepIdle (db: PGlite): void {
  idle.set(db, setTimeout(async () => {
    idle.delete(db)
    await close(db)
  }, 500))
}

async function close (db: PGlite): Promise<void> {
  tests.delete(db)
  await db.close()
}

function takeIdle (): PGlite | undefined {
  const [db] = idle.keys()
  if (db === undefined) return
  clearTimeout(idle.get(db))
  idle.delete(db)
  return db
}

async function cleaning (db: PGlite): Promise<string[]> {
  await db.exec('rollback')
  const { rows } = await db.query<{ statement: string }>(`
    select format('drop schema %I cascade', nspname) as statement from pg_namespace
    where nspname not like 'pg\\_%' and nspname <> 'information_schema'`)
  const drops = rows.map(({ statement }) => statement)
  return [...drops, 'create schema public', 'alter database postgres reset all', 'discard all']
}

/**
 * Writes an empty database to a file. Processes for which TEST_PGLITE_IMAGE names it start from a copy: that takes a few
 * tenths of a second, making an empty database takes seconds.
 */
export async function writeImage (path: string): Promise<void> {
  const blob = await makeImage()
  await writeFile(path, Buffer.from(await blob.arrayBuffer()))
}

async function readImage (): Promise<Blob> {
  const path = process.env.TEST_PGLITE_IMAGE
  return path === undefined ? makeImage() : new Blob([await readFile(path)])
}

async function makeImage (): Promise<Blob> {
  const db = await PGlite.create()
  const blob = await db.dumpDataDir('none')
  await db.close()
  return blob
}
