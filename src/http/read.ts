import type { FastifyInstance } from 'fastify'
import type { PluginLedger } from '../ledger/index.js'
import type { HistoryEntry } from '../ledger/types.js'
import { accountOf } from './identity.js'
import { shownBalance } from './balance.js'
import { linkToNextPage } from './pages.js'
import { readQuery, readSchema, type ReadQuery } from './schemas.js'
import type { RouteSettings } from './routes.js'
import { strictValidator } from './validation.js'

/** `GET /credits`: balance and usage history. */
export function readRoute (fastify: FastifyInstance, ledger: PluginLedger, { mustName, options }: RouteSettings) {
  fastify.get<{ Querystring: ReadQuery }>('/credits', {
    ...options,
    schema: readSchema(mustName, fastify.prefix),
    validatorCompiler: strictValidator({ querystring: readQuery(mustName) })
  }, async (request, reply) => {
    const { balance, entries, cursor } = await ledger.read(accountOf(request), { cursor: request.query.cursor })
    linkToNextPage(request, reply, cursor)
    return { credits: { ...shownBalance(balance), usage_history: entries.map(shownEntry) } }
  })
}

// Twice: first so that these three come first, then so that no metadata replaces them. Spreading defines properties,
// so that even a metadata key `__proto__`, in records from before this plugin, is data.
function shownEntry ({ date, used, operation, metadata }: HistoryEntry) {
  const own = { date, used, operation }
  return { ...own, ...metadata, ...own }
}
