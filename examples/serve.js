import { realpathSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import closeWithGrace from 'close-with-grace'

const HERE = ['127.0.0.1', '::1', '0.0.0.0', '::']

/** Returns true if a module is the one that node was started with, and false if another module imported it. */
export function isMain (moduleUrl) {
  return realpathSync(process.argv[1] ?? '.') === realpathSync(fileURLToPath(moduleUrl))
}

/**
 * Serves the app that `build` returns, on HOST and PORT (default: localhost, 8000). Ctrl-C closes it cleanly. If the app
 * cannot start, prints why and exits with code 1.
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

/** Returns the URL at which this machine reaches the app, for the lines that a server prints at start. */
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
  // One Ctrl-C may arrive twice, from the terminal and from npm. The second must not end the process while it closes.
  process.once('SIGINT', close)
  process.on('SIGINT', () => {})
}

function explain (error) {
  if (error.code === 'EADDRINUSE') {
    return `Port ${error.port} is already in use on ${error.address}. Choose another one with PORT=${error.port + 1}`
  }
  // An error with a code comes from outside, and its message is enough. Any other error is a bug, and needs its stack.
  if (!error.code) return error.stack
  return [error, error.cause].filter(Boolean).map(({ message, code }) => message || code).join(': ')
}
