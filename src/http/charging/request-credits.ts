import { InvalidInputError } from '../../errors.js'
import { compile, CreditsOrNone, MetadataField } from '../../ledger/input/fields.js'
import type { Metadata } from '../../ledger/input/metadata.js'

/** `request.credits`: what is held for a charged request, and the methods by which its handler reports what it used. */
export interface RequestCredits {
  /** The hold's id; `null` if nothing is held, because the request is free or is served without the database. */
  readonly holdId: string | null
  /** Credits held. */
  readonly held: number
  /** The account that pays. */
  readonly userId: string
  /** The budget in which the credits count; `null`: none. */
  readonly budget: string | null
  /** What the credits are spent on. */
  readonly operation: string
  /** The credits that `use` has added up. */
  readonly used: number
  /** Adds to the credits used. These and their sum must be whole numbers from 0 to 2^53 - 1. Throws InvalidInputError. */
  use (credits: number): void
  /** Adds facts about the usage; they replace those of the route's config that have the same keys. Throws InvalidInputError. */
  metadata (facts: Metadata): void
  /** Makes the request free, whatever it replies: its hold is released. */
  cancel (): void
}

/** A request's hold: its id, its credits, who pays, in which budget, and for what. */
export interface HeldCredits {
  id: string | null
  credits: number
  userId: string
  budget: string | undefined
  operation: string
  metadata: Metadata
}

const creditsProblem = compile(CreditsOrNone)
const metadataProblem = compile(MetadataField)

/** The usage that a handler has reported so far, through `request.credits`. */
export class ReportedUsage implements RequestCredits {
  useWasCalled = false
  /** Whether `cancel` was called. */
  cancelled = false
  /** The metadata that the handler added to the hold's; undefined: none. */
  addedMetadata: Metadata | undefined
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

  get budget (): string | null {
    return this.hold.budget ?? null
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
    this.useWasCalled = true
  }

  metadata (facts: Metadata): void {
    const added = { ...this.addedMetadata, ...facts }
    const problem = metadataProblem(facts) ?? metadataProblem({ ...this.hold.metadata, ...added })
    if (problem !== undefined) throw new InvalidInputError('metadata', problem.problem)
    this.addedMetadata = JSON.parse(JSON.stringify(added))
  }

  cancel (): void {
    this.cancelled = true
  }
}
