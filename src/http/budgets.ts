import type { FastifyInstance } from 'fastify'
import { BudgetsPerPage, compile } from '../ledger/input/fields.js'
import type { PluginLedger } from '../ledger/open.js'
import type { Budget } from '../ledger/operations/budgets.js'
import { accountOf, budgetOf } from './identity.js'
import { linkToNextPage } from './pages.js'
import type { RouteSettings } from './route-settings.js'
import { budgetsQuery, budgetsSchema, type BudgetsQuery } from './schemas.js'
import { toSnakeCase } from './snake-case.js'
import { strictValidator, validationError } from './validation.js'

const limitProblem = compile(BudgetsPerPage)

/** Registers `GET /credits/budgets`, which returns the budgets that a client may see, by pages. */
export function budgetsRoute (fastify: FastifyInstance, ledger: PluginLedger, { mustName, options }: RouteSettings) {
  fastify.get<{ Querystring: BudgetsQuery }>('/credits/budgets', {
    ...options,
    schema: budgetsSchema(mustName, fastify.prefix),
    validatorCompiler: strictValidator({ querystring: budgetsQuery(mustName) })
  }, async (request, reply) => {
    const userId = accountOf(request)
    const own = budgetOf(request)
    const limit = limitOf(request.query)
    const { cursor: after } = request.query
    const { entries, cursor } = own === undefined
      ? await ledger.budgets(userId, { ...limit !== undefined && { limit }, ...after !== undefined && { cursor: after } })
      : page((await ledger.budgets(userId, { path: own })).entries, limit, after)
    linkToNextPage(request, reply, cursor)
    return { entries: entries.map(shownBudget), cursor }
  })
}

/** Returns a budget as replies show it. */
export function shownBudget (budget: Budget): object {
  return toSnakeCase(budget)
}

function limitOf ({ limit: text }: BudgetsQuery): number | undefined {
  if (text === undefined) return undefined
  const limit = Number(text)
  const problem = limitProblem(limit)
  if (problem !== undefined) throw validationError('querystring', 'limit', problem.problem)
  return limit
}

// A cursor is the name of the last budget on the page before.
function page (path: Budget[], limit = path.length, after?: string) {
  const first = path.findIndex(({ budget }) => budget === after) + 1
  const entries = path.slice(first, first + limit)
  return { entries, cursor: first + limit < path.length ? entries.at(-1)!.budget : null }
}
