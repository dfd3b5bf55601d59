import { Type } from '@sinclair/typebox'
import type { FastifyInstance, preHandlerAsyncHookHandler } from 'fastify'
import { StatementCursor, Time, WholeNumber } from '../../ledger/input/fields.js'
import type { StatementEntry } from '../../ledger/operations/statement.js'
import type { Credits } from '../../ledger/types.js'
import { shownBalance } from '../balance.js'
import { linkToNextPage } from '../pages.js'
import { account, operationId, PageCursor, pageHeaders, refusals, whole } from '../schemas.js'
import { toSnakeCase } from '../snake-case.js'
import { asValidationError, strictValidator } from '../validation.js'

interface StatementQuery {
  user_id?: string
  from?: string
  to?: string
  limit?: string
  cursor?: string
}

const Entry = Type.Object({
  seq: whole('Its number in the order of the account\'s changes'),
  kind: Type.String({ description: 'What happened' }),
  at: Type.String({ format: 'date-time', description: 'When it took effect' }),
  amount: whole('The change of the available credits'),
  balance: Type.Ref('AiCreditsBalance'),
  price_version: Type.Optional(Type.String({ description: 'The version of the prices, for a charge by usage' })),
  usage: Type.Optional(Type.Object({}, {
    additionalProperties: whole('A quantity'), description: 'The quantities of a charge by usage'
  }))
}, { additionalProperties: true, description: 'One change of an account, and its cause' })

const query = (mustName: boolean) => Type.Object({
  user_id: account(mustName),
  from: Type.Optional(Time),
  to: Type.Optional(Time),
  limit: Type.Optional(WholeNumber),
  cursor: Type.Optional(StatementCursor)
}, { additionalProperties: false })

/** Registers `GET /credits/statement`, which lists every change of an account, by pages. */
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
          headers: pageHeaders,
          ...Type.Object({ entries: Type.Array(Entry), cursor: PageCursor })
        },
        ...refusals
      }
    },
    validatorCompiler: strictValidator({ querystring: query(mustName) })
  }, async (request, reply) => {
    const { user_id: userId, limit, ...page } = request.query
    const input = { ...page, ...limit !== undefined && { limit: Number(limit) } }
    const { entries, cursor } = await asValidationError('querystring', ledger.statement(userId, input))
    linkToNextPage(request, reply, cursor)
    return { entries: entries.map(shownEntry), cursor }
  })
}

function shownEntry (entry: StatementEntry) {
  return toSnakeCase({ ...entry, balance: shownBalance(entry.balance) })
}
