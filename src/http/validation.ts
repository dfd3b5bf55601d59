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

/** Refuses a query with malformed percent-encoding, which Fastify would take as it stands: '%FF' is no user. */
export async function refuseMalformedQuery (request: FastifyRequest): Promise<void> {
  const [, query = ''] = request.url.split('?')
  try {
    decodeURIComponent(query)
  } catch {
    throw validationError('querystring', '', 'must be percent-encoded UTF-8')
  }
}
