import { existsSync } from 'node:fs'
import { rename, rm } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { PGlite } from '@electric-sql/pglite'
import { PGLiteSocketServer } from '@electric-sql/pglite-socket'
import { lockFolder } from './folder-lock.js'

// PGlite has a single backend, so more connections would not be faster. They would do harm: the socket server may mix up
// what two connections send if a message is larger than 64 KiB.
const POOL_SIZE = 1

// If the pool replaces a connection, the server still counts the old one for a moment.
const SPARE_CONNECTIONS = 4

/**
 * Starts PostgreSQL inside this process (PGlite), with its data in a folder, for a try without a database server. Give
 * `connectionString` and `max` to @fastify/postgres, and `prepare: false` to fastify-ai-credits. Call `close()` after the
 * pool has ended. Committed data survives a killed process, but not a power loss: PGlite does not fsync. Any program on
 * this machine can connect to it.
 *
 * @param {string} dataDir
 * @returns {Promise<{ connectionString: string, max: number, folder: string, close: () => Promise<void> }>}
 */
export async function startEmbeddedDatabase (dataDir) {
  const folder = resolve(dataDir)
  const unlock = await lockFolder(folder)
  try {
    const database = await openDatabase(join(folder, 'pgdata'))
    const server = await serve(database)
    return {
      connectionString: `postgres://postgres@${server.getServerConn()}/postgres`,
      max: POOL_SIZE,
      folder,
      async close () {
        await server.stop()
        await database.close()
        await unlock()
      }
    }
  } catch (error) {
    await unlock()
    throw error
  }
}

// A new database is made in another folder, and moved to its place when it is complete. Otherwise a first start that is
// killed halfway would leave a folder that can never be opened.
async function openDatabase (folder) {
  if (!existsSync(folder)) {
    const unfinished = `${folder}.unfinished`
    await rm(unfinished, { recursive: true, force: true })
    const fresh = await PGlite.create(unfinished)
    await fresh.close()
    await rename(unfinished, folder)
  }
  return PGlite.create(folder)
}

async function serve (database) {
  const server = new PGLiteSocketServer({
    db: database,
    host: '127.0.0.1',
    port: 0,
    maxConnections: POOL_SIZE + SPARE_CONNECTIONS
  })
  try {
    await server.start()
    return server
  } catch (error) {
    await database.close()
    throw error
  }
}
