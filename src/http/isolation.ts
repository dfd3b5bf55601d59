import { isUtf8 } from 'node:buffer'
import { createError } from '@fastify/error'
import type { FastifyInstance } from 'fastify'
import { isShortage } from '../ledger/posting/verdict.js'
import { detailsOf } from './refusal.js'

/** The largest request body, in bytes. */
export const BODY_LIMIT = 65_536

const InvalidJsonError = createError('FST_ERR_CTP_INVALID_JSON_BODY',
  "Body is not valid JSON but content-type is set to 'application/json'", 400)

/** Makes the routes of a context independent of the parsers and serializers that the host has set. */
export function isolate (fastify: FastifyInstance): void {
  const parse = fastify.getDefaultJsonParser('error', 'error')
  fastify.removeAllContentTypeParsers()
  fastify.addContentTypeParser('application/json', { parseAs: 'buffer', bodyLimit: BODY_LIMIT },
    (request, body: Buffer, done) => {
      // Otherwise each invalid byte would become U+FFFD, and different users would share an account.
      if (isUtf8(body)) parse(request, body.toString(), done)
      else done(new InvalidJsonError())
    })
  fastify.setSerializerCompiler(() => serialize)
  fastify.setReplySerializer(serialize)
}

function serialize (payload: unknown) {
  return JSON.stringify(payload instanceof Error ? errorBody(payload) : payload)
}

// Fastify passes an object whose prototype is the error.
function errorBody (payload: Error & Record<string, any>) {
  const { statusCode, code, error, message } = payload
  return { statusCode, code, error, message, ...isShortage(payload) && detailsOf(payload) }
}
