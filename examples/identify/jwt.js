import jwt from '@fastify/jwt'

/**
 * Who is asking is the subject of a JSON Web Token: `Authorization: Bearer …`. Checks it on each request of the context,
 * and answers the option `identify` for fastify-ai-credits.
 *
 * @param {import('fastify').FastifyInstance} app
 * @param {{ secret: string }} options
 */
export async function identifyByJwt (app, { secret }) {
  await app.register(jwt, { secret })
  app.addHook('onRequest', request => request.jwtVerify())

  // Anything but a string would be nobody's account: 401.
  return ({ user: { sub } }) => typeof sub === 'string' ? sub : null
}
