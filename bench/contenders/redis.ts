import { Redis, type Result } from 'ioredis'
import { ACCOUNTS, HOT, PLENTY } from '../databases.js'
import { startRedis, type Sync } from '../redis/redis-server.js'
import { charge, type Contender } from './contender.js'

declare module 'ioredis' {
  interface RedisCommander<Context> {
    charge (...keysAndValues: (string | number)[]): Result<number, Context>
  }
}

// What the library's deduct does: it checks the balance, charges the account, writes the usage record with the balance after
// it, and adds to the sum of the day. Returns the new balance.
const script = `
  local total, used = unpack(redis.call('HMGET', KEYS[1], 'total', 'used'))
  if not total then return redis.error_reply('No such account') end
  if tonumber(total) - tonumber(used) < tonumber(ARGV[1]) then return redis.error_reply('Insufficient credits') end
  used = redis.call('HINCRBY', KEYS[1], 'used', ARGV[1])
  redis.call('XADD', KEYS[2], '*', 'credits', ARGV[1], 'operation', ARGV[2], 'metadata', ARGV[3], 'total', total, 'used', used)
  redis.call('HINCRBY', KEYS[3], ARGV[4] .. ' ' .. ARGV[2], ARGV[1])
  return tonumber(total) - used`

// The keys of an account are in one slot of a cluster.
const keysOf = (userId: string) => [`{${userId}}`, `{${userId}}:usage`, `{${userId}}:days`] as const

const users = [...Array.from({ length: ACCOUNTS }, (_, n) => `user${n}`), HOT]

// What a user would pick instead of the library, with the client's automatic pipelining.
const redisContender = (name: string, sync: Sync): Contender => ({
  name,
  async open () {
    const server = await startRedis(sync)
    const client = new Redis(server.port, { enableAutoPipelining: true })
    client.defineCommand('charge', { numberOfKeys: 3, lua: script })
    await Promise.all(users.map(userId => client.hset(keysOf(userId)[0], { total: PLENTY, used: 0 })))
    return {
      async call (userId) {
        const day = new Date().toISOString().slice(0, 10)
        const balance = await client.charge(
          ...keysOf(userId), charge.credits, charge.operation, JSON.stringify(charge.metadata), day)
        if (!(balance < PLENTY)) throw new Error(`The balance is ${balance}`)
      },
      charged: () => chargedByRedis(client),
      async close () {
        await client.quit()
        await server.stop()
      }
    }
  }
})

// By the usage records, by the days and by the accounts.
async function chargedByRedis (client: Redis): Promise<number[]> {
  const all = await Promise.all(users.map(async userId => {
    const [account, usage, days] = keysOf(userId)
    const [records, sums, used] = await Promise.all([client.xlen(usage), client.hvals(days), client.hget(account, 'used')])
    return [records * charge.credits, total(sums.map(Number)), Number(used)]
  }))
  return [0, 1, 2].map(table => total(all.map(sums => sums[table]!)))
}

const total = (numbers: number[]) => numbers.reduce((sum, number) => sum + number, 0)

/** (h) A script in Redis, which syncs its log to the disk before it replies: as durable as the library. */
export const redisAlways = redisContender('Redis, synced always', 'always')

/** (i) The same, but the log is synced once a second: a crash of the machine loses what was acknowledged since. */
export const redisEverySecond = redisContender('Redis, synced each second', 'everysec')
