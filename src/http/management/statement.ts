import { Type } from '@sinclair/typebox'
import type { FastifyInstance, preHandlerAsyncHookHandler } from 'fastify'
import { StatementCursor, Time, WholeNumber } from '../../ledger/fields.js'
import type { Credits, StatementEntry } from '../../ledger/types.js'
import { shownBalance } from '../balance.js'
import { linkToNextPage } from '../pages.js'
import { account, operationId, refusals, whole } from '../schemas.js'
import { strictValidator } from '../validation.js'
import { answering, toSnakeCase } from './action.js'

interface StatementQuery {
  user_id?: string
  from?: string
  to?: string
  limit?: string
  cursor?: string
}

const Entry = Type.Object({
  seq: whole('Its place in the account\'s order'),
  kind: Type.String({ description: 'What happened' }),
  at: Type.String({ format: 'date-time', description: 'When it took effect' }),
  amount: whole('By how many credits it changed what is available'),
  balance: Type.Ref('AiCreditsBalance'),
  price_version: Type.Optional(Type.String({ description: 'Of a charge by usage: the version of the prices' })),
  usage: Type.Optional(Type.Object({}, {
    additionalProperties: whole('A quantity'), description: 'Of a charge by usage: what it was computed from'
  }))
}, { additionalProperties: true, description: 'One change of an account, with what caused it' })

const query = (mustName: boolean) => Type.Object({
  user_id: account(mustName),
  from: Type.Optional(Time),
  to: Type.Optional(Time),
  limit: Type.Optional(WholeNumber),
  cursor: Type.Optional(StatementCursor)
}, { additionalProperties: false })

/** `GET /credits/statement`: every change of an account. */
export function statementRoute (
  fastify: FastifyInstance, ledger: Credits, mustName: boolean, preHandler: preHandlerAsyncHookHandler
): void {
  fastify.get<{ Querystring: StatementQuery }>('/credits/statement', {
    preHandler,
    schema: {
      operationId: operationId('getStatement', fastify.prefix),
      summary: 'Every change of an account',
      description: 'Oldest first, each with the balance after it. For trusted services.',
      tags: ['credits management'],
      querystring: query(mustName),
      response: {
        200: {
          description: 'A page of the statement',
          headers: { Link: { type: 'string', description: 'rel="next": the next page, if there is one' } },
          ...Type.Object({ entries: Type.Array(Entry), cursor: Type.Unsafe({ type: ['string', 'null'] }) })
        },
        ...refusals
      }
    },
    validatorCompiler: strictValidator({ querystring: query(mustName) })
  }, async (request, reply) => {
    const { user_id: userId, limit, ...page } = request.query
    const input = { ...page, ...limit !== undefined && { limit: Number(limit) } }
    const { entries, cursor } = await answering('querystring', ledger.statement(userId, input))
    linkToNextPage(request, reply, cursor)
    return { entries: entries.map(shownEntry), cursor }
  })
}

function shownEntry (entry: StatementEntry) {
  return toSnakeCase({ ...entry, balance: shownBalance(entry.balance) })
}
