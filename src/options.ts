import { Type } from '@sinclair/typebox'
import type { FastifyInstance, FastifyReply, FastifyRequest, HookHandlerDoneFunction, RouteShorthandOptions } from 'fastify'
import { InvalidOptionError } from './errors.js'
import { Callable, compile, field, Flag } from './ledger/input/fields.js'
import { ledgerDefaults, ledgerSchema, parsePrices, refuse, strict, withDefaults, type LedgerOptions } from './ledger/options.js'

/**
 * The sender of a request:
 * - a user id;
 * - `{ userId, budget }`: a user id and a budget of that account, to which the request is then bound. It counts in this budget
 *   and in those above it, whether it names the budget or not. With `null`, or without `budget`, it is like the user id alone.
 *   `undefined` is an error (InvalidIdentityError): a host that did not find the budget would bind the request to none;
 * - `{ any: true }`: a trusted service, which names the account in each request, and may name any budget of it;
 * - `undefined`, `null` or `''`, also as `userId`: nobody is authenticated (401).
 */
export type Identity =
  string | { userId: string | null | undefined, budget?: string | null } | { any: true } | null | undefined

/**
 * A hook that allows or refuses a request. It may use either style of Fastify's hooks: return a promise, or take `done` as
 * its third parameter and call it. It may also return true or false.
 *
 * The hook allows the request if it returns `true`, if its promise resolves to undefined or a truthy value, or if it calls
 * `done` without an error and with undefined or a truthy value as second argument. It refuses the request if
 * - it throws, rejects, or calls `done` with an error;
 * - it sends a reply;
 * - it returns `false`;
 * - it resolves to `false`, `null`, `0` or `''`, or passes one of them to `done` as second argument;
 * - it takes no `done` and returns something else that is not a promise, also undefined (InvalidAuthorizationError).
 */
export type Authorize = (
  this: FastifyInstance, request: FastifyRequest, reply: FastifyReply, done: HookHandlerDoneFunction
) => unknown

/** Options that the host adds to one of the plugin's routes. */
export type CreditsRouteOptions =
  Pick<RouteShorthandOptions, 'onRequest' | 'preValidation' | 'preHandler' | 'config' | 'constraints'>

/** The options of the plugin. */
export interface FastifyAiCreditsOptions extends LedgerOptions {
  /**
   * The prefix of the routes: `GET {prefix}/credits`, `GET {prefix}/credits/budgets` and `POST {prefix}/credits/deduct`. It
   * follows the prefix of the context that registers the plugin. `''` and `'/'` mean no prefix. Default: `'/api'`.
   */
  prefix?: string
  /**
   * Which routes to register. `true`: all; `false`: none. An object decides for the two routes that read, and for the one that
   * deducts together with `POST {prefix}/credits/check`: `true`, `false`, or route options of the host, for example to guard one
   * of them alone. What the object omits is registered. Default: true.
   */
  routes?: boolean | { read?: boolean | CreditsRouteOptions, deduct?: boolean | CreditsRouteOptions }
  /**
   * Binds requests to the host's authentication: returns the sender of the request. It is called once for each request,
   * after validation and all of the host's hooks. A client may then name only its own account, and only its own budget if it
   * is bound to one; otherwise the request is refused (403). Without `identify`, the routes trust the `user_id` and the
   * `budget` in the request. Default: none.
   */
  identify?: (request: FastifyRequest) => Identity | Promise<Identity>
  /**
   * Registers management routes, for services in other languages: grants, holds, refunds, budgets and the statement. `authorize` is
   * called for each request, after validation and all of the host's hooks, and must allow it. If it is a list, each hook
   * must allow the request. Default: no management routes.
   */
  management?: { authorize: Authorize | Authorize[] }
  /** The name of the `@fastify/postgres` instance to use. Default: the unnamed instance. */
  pg?: string
  /** Opens a separate pool for the plugin, for a host without `@fastify/postgres`. Cannot be combined with `pg`. */
  connectionString?: string
  /** Whether to create and upgrade the tables at start. Default: true. */
  migrate?: boolean
  /** Whether to write the sample data at start, if the default user has no account yet. Default: false. */
  sampleData?: boolean
}

const Prefix = field<string>('prefix', {},
  value => typeof value === 'string' && (value === '' || value.startsWith('/')) && !value.includes('*'),
  "must start with '/' and have no '*'")

const Name = field<string>('name', {}, value => typeof value === 'string' && value !== '', 'must be a string, not empty')

const isRouteOptions = isValid(strict({
  onRequest: Type.Any(), preValidation: Type.Any(), preHandler: Type.Any(), config: Type.Any(), constraints: Type.Any()
}))

const Route = field<boolean | CreditsRouteOptions>('route', {},
  value => typeof value === 'boolean' || isRouteOptions(value),
  'must be true, false, or { onRequest, preValidation, preHandler, config, constraints }')

const isRoutes = isValid(strict({ read: Route, deduct: Route }))

const Routes = field<FastifyAiCreditsOptions['routes']>('routes', {},
  value => typeof value === 'boolean' || isRoutes(value),
  'must be true, false, or { read, deduct }, each true, false or route options')

function isValid (schema: ReturnType<typeof strict>) {
  const problemOf = compile(schema)
  return (value: unknown) => problemOf(value) === undefined
}

const Authorization = field<Authorize | Authorize[]>('authorize', {},
  value => Array.isArray(value) ? value.length > 0 && value.every(isHook) : isHook(value), '')

// Fastify also refuses an async hook that takes `done`, because it could decide twice.
function isHook (value: unknown) {
  return typeof value === 'function' && !(value.constructor.name === 'AsyncFunction' && value.length === 3)
}

const managementProblem = compile(Type.Object({ authorize: Authorization }, { additionalProperties: false }))

const Management = field<FastifyAiCreditsOptions['management']>('management', {},
  value => managementProblem(value) === undefined,
  'must be { authorize }: a hook that allows requests, or a list of them; an async hook must not take done')

const checkPluginOptions = compile(strict({
  ...ledgerSchema,
  prefix: Prefix,
  routes: Routes,
  identify: Callable,
  management: Management,
  pg: Name,
  connectionString: Name,
  migrate: Flag,
  sampleData: Flag
}))

const pluginDefaults = { ...ledgerDefaults, prefix: '/api', routes: true, migrate: true, sampleData: false }

/** Checks the plugin's options and returns them with the defaults. Throws InvalidOptionError, which names the option. */
export function parsePluginOptions (options: FastifyAiCreditsOptions) {
  refuse(checkPluginOptions(options))
  const parsed = withDefaults<typeof pluginDefaults & Omit<FastifyAiCreditsOptions, 'prices'>>(pluginDefaults, options)
  if (parsed.pg !== undefined && parsed.connectionString !== undefined) {
    throw new InvalidOptionError('connectionString', 'opens a separate pool and cannot be combined with pg')
  }
  if (parsed.sampleData && parsed.defaultUser === null) {
    throw new InvalidOptionError('sampleData', 'needs a defaultUser to give the sample data to')
  }
  return { ...parsed, prices: parsePrices(options), prefix: parsed.prefix.replace(/\/+$/, '') }
}
