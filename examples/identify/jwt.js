import jwt from '@fastify/jwt'

/**
 * Identifies users by the subject of a JSON Web Token, `Authorization: Bearer …`. Checks the token of each request of the
 * context, and returns the option `identify` for fastify-ai-credits.
 *
 * @param {import('fastify').FastifyInstance} app
 * @param {{ secret: string }} options
 */
export async function identifyByJwt (app, { secret }) {
  await app.register(jwt, { secret })
  app.addHook('onRequest', request => request.jwtVerify())

  // A subject that is no string is nobody: 401.
  return ({ user: { sub } }) => typeof sub === 'string' ? sub : null
}
