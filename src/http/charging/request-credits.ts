import { InvalidInputError } from '../../errors.js'
import { compile, CreditsOrNone, MetadataField } from '../../ledger/fields.js'
import type { Metadata } from '../../ledger/metadata.js'

/** `request.credits`: what a charged request holds, and what its handler says of it. */
export interface RequestCredits {
  /** The hold; `null` where nothing is held: the request is free, or is served without the database. */
  readonly holdId: string | null
  /** Credits held. */
  readonly held: number
  /** The account that pays. */
  readonly userId: string
  /** What the credits are spent on. */
  readonly operation: string
  /** Credits that `use` has added up. */
  readonly used: number
  /** Adds to what was used: a whole number from 0 to 2^53 - 1, as the sum must be. Throws InvalidInputError. */
  use (credits: number): void
  /** Adds facts about the usage, over those of the route's config. Throws InvalidInputError. */
  metadata (facts: Metadata): void
  /** Nothing is to be paid, whatever comes of the request: the hold is released. */
  cancel (): void
}

/** What a request's credits are held for. */
export interface HeldCredits {
  id: string | null
  credits: number
  userId: string
  operation: string
  metadata: Metadata
}

const creditsProblem = compile(CreditsOrNone)
const metadataProblem = compile(MetadataField)

/** What a handler has said so far of what it used. */
export class HandlerReport implements RequestCredits {
  /** Whether `use` was called at all. */
  reported = false
  cancelled = false
  /** The facts beside those of the hold; undefined: none. */
  facts: Metadata | undefined
  private sum = 0

  constructor (private readonly hold: HeldCredits) {}

  get holdId (): string | null {
    return this.hold.id
  }

  get held (): number {
    return this.hold.credits
  }

  get userId (): string {
    return this.hold.userId
  }

  get operation (): string {
    return this.hold.operation
  }

  get used (): number {
    return this.sum
  }

  use (credits: number): void {
    const problem = creditsProblem(credits) ?? creditsProblem(this.sum + credits)
    if (problem !== undefined) throw new InvalidInputError('credits', problem.problem)
    this.sum += credits
    this.reported = true
  }

  metadata (facts: Metadata): void {
    const added = { ...this.facts, ...facts }
    const problem = metadataProblem(facts) ?? metadataProblem({ ...this.hold.metadata, ...added })
    if (problem !== undefined) throw new InvalidInputError('metadata', problem.problem)
    this.facts = JSON.parse(JSON.stringify(added))
  }

  cancel (): void {
    this.cancelled = true
  }
}
