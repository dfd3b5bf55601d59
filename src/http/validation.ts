import { parse } from 'node:querystring'
import { createError } from '@fastify/error'
import type { TSchema } from '@sinclair/typebox'
import type { FastifyRequest, FastifySchemaCompiler } from 'fastify'
import { compile } from '../ledger/fields.js'

const ValidationError = createError('FST_ERR_VALIDATION', '%s %s', 400)

/** An error as Fastify makes them for a request that does not match its schema. `part`: body, headers, querystring. */
export function validationError (part: string, field: string, problem: string) {
  const error = new ValidationError(field === '' ? part : `${part}/${field}`, problem)
  return Object.assign(error, {
    validationContext: part,
    validation: [{ keyword: 'type', instancePath: field && `/${field}`, schemaPath: '#', params: {}, message: problem }]
  })
}

/**
 * A validator compiler for a route: strict, where Fastify's default would coerce `true` to 1 and drop unknown fields.
 * It goes by the part of the request, because Fastify hands over a copy of the headers' schema.
 */
export function strictValidator (parts: Record<string, TSchema>): FastifySchemaCompiler<unknown> {
  const checks = new Map(Object.entries(parts).map(([part, schema]) => [part, compile(schema)]))
  return ({ httpPart = '' }) => value => {
    const problem = checks.get(httpPart)?.(value)
    return problem === undefined ? { value } : { error: validationError(httpPart, problem.field, problem.problem) }
  }
}

// ';' too, as hosts may have set `useSemicolonDelimiter`.
const QUERY_DELIMITER = /[?#;]/

/** The path of a URL, and its query as it was sent. */
export function splitUrl (url: string): { path: string, query: string } {
  const [path = ''] = url.split(QUERY_DELIMITER, 1)
  return { path, query: url.slice(path.length + 1) }
}

/**
 * Reads the query anew, whatever parser the host has set: one that keeps the last of two values hides that a parameter
 * was given twice. Malformed percent-encoding is refused, which Fastify would take as it stands: '%FF' is no user.
 */
export async function readQueryStrictly (request: FastifyRequest): Promise<void> {
  const { query } = splitUrl(request.url)
  try {
    decodeURIComponent(query)
  } catch {
    throw validationError('querystring', '', 'must be percent-encoded UTF-8')
  }
  request.query = parse(query, '&', '=', { maxKeys: 0 })
}
