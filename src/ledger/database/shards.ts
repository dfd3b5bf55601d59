import { now } from '../timers.js'
import { hashText } from './hash-text.js'
import { inSchema } from './schema.js'
import type { Queryable } from './types.js'

/** An SQL expression: the name of a catalog of Citus; null in a database without Citus. */
export const CATALOG_OF_CITUS = "pg_catalog.to_regclass('pg_catalog.pg_dist_partition'::pg_catalog.text)::pg_catalog.text"

// Texts, because the host may have changed how `pg` parses numbers and "char".
const METHOD = `
  select partmethod::pg_catalog.text as method from pg_catalog.pg_dist_partition
  where logicalrelid operator(pg_catalog.=)
    pg_catalog.to_regclass(pg_catalog.format('%I.ai_credits'::pg_catalog.text, :'schema'::pg_catalog.text))`

const BY_HASH = 'h'

// A shard may have copies on several nodes. Citus reads the one whose placement came first.
const PLACEMENTS = `
  select shard.shardminvalue::pg_catalog.text as first_hash, placement.groupid::pg_catalog.text as node
  from pg_catalog.pg_dist_shard shard
    join pg_catalog.pg_dist_placement placement on placement.shardid operator(pg_catalog.=) shard.shardid
  where shard.logicalrelid operator(pg_catalog.=)
      pg_catalog.to_regclass(pg_catalog.format('%I.ai_credits'::pg_catalog.text, :'schema'::pg_catalog.text))
    and placement.shardstate operator(pg_catalog.=) 1
  order by shard.shardminvalue::integer, placement.placementid desc`

/** Returns whether Citus has distributed the ledger's tables over nodes. Only for a database that has Citus. */
export async function isDistributed (db: Queryable, schema: string): Promise<boolean> {
  const { rows: [table] } = await db.query(inSchema(METHOD, schema))
  return table?.method === BY_HASH
}

/** Where accounts live: the hash of a user id falls into the range of a shard, and the shard is on a node. */
export interface ShardMap {
  /** The first hash of each shard, in ascending order. A range reaches up to the next one. */
  firstHashes: number[]
  /** The node of each shard: the id of its group. */
  nodes: number[]
}

/** Reads where the shards of the ledger's tables are. */
export async function readShards (db: Queryable, schema: string): Promise<ShardMap> {
  const { rows } = await db.query(inSchema(PLACEMENTS, schema))
  const nodes = new Map<number, number>()
  for (const { first_hash: firstHash, node } of rows) nodes.set(Number(firstHash), Number(node))
  return { firstHashes: [...nodes.keys()], nodes: [...nodes.values()] }
}

/**
 * Knows on which node an account lives. A shard may move at any time. So the map is read anew, in the background, when it is
 * used and is no longer young. If that fails, the old map stays: a statement at another node than its accounts is slower, and
 * as right.
 */
export class Shards {
  private readAt = now()
  private reading = false

  /** `maxAge`: for how many milliseconds a map is young. */
  constructor (private map: ShardMap, private readonly read: () => Promise<ShardMap>, private readonly maxAge = 10_000) {}

  /** Returns the node on which the account lives. */
  nodeOf (userId: string): number {
    if (now() - this.readAt > this.maxAge && !this.reading) this.readAnew()
    const { firstHashes, nodes } = this.map
    const hash = hashText(userId)
    let low = 0
    let high = firstHashes.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (firstHashes[middle]! <= hash) low = middle + 1
      else high = middle
    }
    return nodes[low - 1] ?? 0
  }

  private async readAnew () {
    this.reading = true
    try {
      this.map = await this.read()
    } catch {
      // the old map stays
    }
    this.readAt = now()
    this.reading = false
  }
}
