import type { Lane } from './lane.js'

/**
 * What waits for a shared statement on one node of the database, and what of it is in flight. A statement has accounts of one
 * node only, so that the node can run the whole of it. Nodes do not wait for each other.
 */
export class NodeQueue<Call, Result> {
  /** The lanes whose calls can be sent. */
  readonly ready: Lane<Call, Result>[] = []
  /** The lanes whose accounts must be created, if that can be done together. */
  readonly missing: Lane<Call, Result>[] = []
  /** Shared statements in flight. */
  together = 0
  /** Statements in flight with one call that could share a statement. */
  alone = 0
  /** Whether a statement in flight creates accounts together. */
  isCreating = false
}
