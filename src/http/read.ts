import type { FastifyInstance } from 'fastify'
import type { PluginLedger } from '../ledger/open.js'
import type { HistoryEntry } from '../ledger/operations/history.js'
import { accountOf, budgetOf } from './identity.js'
import { shownBalance } from './balance.js'
import { linkToNextPage } from './pages.js'
import { readQuery, readSchema, type ReadQuery } from './schemas.js'
import type { RouteSettings } from './route-settings.js'
import { strictValidator } from './validation.js'

/** Registers `GET /credits`, which returns the balance and the usage history, of the account or of one budget. */
export function readRoute (fastify: FastifyInstance, ledger: PluginLedger, { mustName, options }: RouteSettings) {
  fastify.get<{ Querystring: ReadQuery }>('/credits', {
    ...options,
    schema: readSchema(mustName, fastify.prefix),
    validatorCompiler: strictValidator({ querystring: readQuery(mustName) })
  }, async (request, reply) => {
    const { balance, entries, cursor } = await ledger.read(accountOf(request), {
      cursor: request.query.cursor, budget: budgetOf(request)
    })
    linkToNextPage(request, reply, cursor)
    return { credits: { ...shownBalance(balance), usage_history: entries.map(shownEntry) } }
  })
}

// `own` is spread twice: the first puts these three keys first, the second keeps metadata from replacing them. Spreading
// defines properties, so even a metadata key `__proto__`, in records older than this plugin, is data.
function shownEntry ({ date, used, operation, metadata }: HistoryEntry) {
  const own = { date, used, operation }
  return { ...own, ...metadata, ...own }
}
