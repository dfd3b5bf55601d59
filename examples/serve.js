import { realpathSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import closeWithGrace from 'close-with-grace'

const HERE = ['127.0.0.1', '::1', '0.0.0.0', '::']

/** Whether a module is the one that node was started with, rather than imported by another. */
export function isMain (moduleUrl) {
  return realpathSync(process.argv[1] ?? '.') === realpathSync(fileURLToPath(moduleUrl))
}

/**
 * Serves the app that `build` makes on HOST and PORT until Ctrl-C, which closes it cleanly. Where it cannot start, it
 * says why in one line and exits with code 1.
 *
 * @param {() => Promise<import('fastify').FastifyInstance>} build
 */
export async function serve (build) {
  const host = process.env.HOST || 'localhost'
  let app
  try {
    const port = portFrom(process.env.PORT || '8000')
    app = await build()
    await app.listen({ host, port })
    closeOnSignal(app)
  } catch (error) {
    process.stderr.write(`${explain(error)}\n`)
    await app?.close()
    process.exit(1)
  }
}

/** The address to open on this machine, for the lines that a server prints at start. */
export function urlOf (app) {
  const { address, port } = app.addresses()[0]
  return HERE.includes(address) ? `http://localhost:${port}` : app.listeningOrigin
}

function portFrom (text) {
  if (/^\d{1,5}$/.test(text) && Number(text) <= 65535) return Number(text)
  throw Object.assign(new Error(`PORT must be a whole number from 0 to 65535, not "${text}"`), { code: 'INVALID_PORT' })
}

function closeOnSignal (app) {
  const { close } = closeWithGrace({ logger: app.log, skip: ['SIGINT'] }, async ({ err }) => {
    if (err) app.log.error(err)
    app.log.info('Closing')
    await app.close()
  })
  // npm may pass on a Ctrl-C that the terminal has sent here too, and a second signal would end closing halfway.
  process.once('SIGINT', close)
  process.on('SIGINT', () => {})
}

function explain (error) {
  if (error.code === 'EADDRINUSE') {
    return `Port ${error.port} is already in use on ${error.address}. Choose another one with PORT=${error.port + 1}`
  }
  // What has a code is the world's doing and its message says enough; anything else is a bug, and needs its stack.
  if (!error.code) return error.stack
  return [error, error.cause].filter(Boolean).map(({ message, code }) => message || code).join(': ')
}
