import { RateLimiterPostgres } from 'rate-limiter-flexible'
import { openPool, query } from '../databases.js'
import { charge, type Contender } from './contender.js'

const FAR = 10 * 365 * 86_400 // seconds: longer than a measurement, so no counter is reset

/** (d) The PostgreSQL store of rate-limiter-flexible: a counter for each user, without usage records. */
export const rateLimiter: Contender = {
  name: 'rate-limiter-flexible',
  async open (connectionString) {
    const pool = openPool(connectionString)
    const limiter = await new Promise<RateLimiterPostgres>((resolve, reject) => {
      const created = new RateLimiterPostgres({
        storeClient: pool, tableName: 'points', points: Number.MAX_SAFE_INTEGER, duration: FAR, clearExpiredByTimeout: false
      }, error => error ? reject(error) : resolve(created))
    })
    return {
      call: userId => limiter.consume(userId, charge.credits),
      async charged () {
        const [row] = await query(connectionString, 'select coalesce(sum(points), 0) as points from points')
        return [Number(row.points)]
      },
      close: () => pool.end()
    }
  }
}
