import { parse } from 'node:querystring'
import { createError } from '@fastify/error'
import type { TSchema } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest, FastifySchemaCompiler } from 'fastify'
import { InvalidInputError } from '../errors.js'
import { compile } from '../ledger/input/fields.js'
import { snakeCase } from './snake-case.js'

const ValidationError = createError('FST_ERR_VALIDATION', '%s %s', 400)

/** Returns an error like Fastify's own for a request that does not match its schema. `part`: body, headers, querystring. */
export function validationError (part: string, field: string, problem: string) {
  const error = new ValidationError(field === '' ? part : `${part}/${field}`, problem)
  return Object.assign(error, {
    validationContext: part,
    validation: [{ keyword: 'type', instancePath: field && `/${field}`, schemaPath: '#', params: {}, message: problem }]
  })
}

/**
 * Turns an InvalidInputError of a method into a validation error of this part of the request. A method also refuses what a
 * schema cannot express (for instance a time in the past), and clients get one kind of error for both.
 */
export async function asValidationError<T> (part: string, call: Promise<T>): Promise<T> {
  try {
    return await call
  } catch (error) {
    if (!(error instanceof InvalidInputError)) throw error
    throw validationError(part, snakeCase(error.field), error.problem)
  }
}

/**
 * Returns a validator compiler for a route. It is strict; Fastify's default would coerce `true` to 1 and drop unknown
 * fields. It finds a schema by the part of the request, because Fastify passes a copy of the headers' schema.
 */
export function strictValidator (parts: Record<string, TSchema>): FastifySchemaCompiler<unknown> {
  const checks = new Map(Object.entries(parts).map(([part, schema]) => [part, compile(schema)]))
  return ({ httpPart = '' }) => value => {
    const problem = checks.get(httpPart)?.(value)
    return problem === undefined ? { value } : { error: validationError(httpPart, problem.field, problem.problem) }
  }
}

/** Splits a URL where the router of the host splits it, into its path and its query; the query stays encoded. */
export function splitUrl (url: string, { initialConfig }: FastifyInstance): { path: string, query: string } {
  // Only hosts that have set this take ';' for the beginning of the query; for all others it is a part of the path.
  const { useSemicolonDelimiter, routerOptions } = initialConfig as SemicolonOptions
  const delimiter = useSemicolonDelimiter || routerOptions?.useSemicolonDelimiter ? /[?#;]/ : /[?#]/
  const [path = ''] = url.split(delimiter, 1)
  return { path, query: url.slice(path.length + 1) }
}

// Fastify 5 takes the option in either place.
interface SemicolonOptions {
  useSemicolonDelimiter?: boolean
  routerOptions?: { useSemicolonDelimiter?: boolean }
}

/**
 * Parses the query again, whatever parser the host has set: a parser that keeps the last of two values hides that a
 * parameter was given twice. Refuses malformed percent-encoding, which Fastify would keep as text: '%FF' is no user.
 */
export async function readQueryStrictly (request: FastifyRequest): Promise<void> {
  const { query } = splitUrl(request.url, request.server)
  try {
    decodeURIComponent(query)
  } catch {
    throw validationError('querystring', '', 'must be percent-encoded UTF-8')
  }
  request.query = parse(query, '&', '=', { maxKeys: 0 })
}
