/** The balance of an account, in credits. `available` is `total - used - held`. */
export interface Balance {
  /** Credits that can be spent now, not counting the overdraft. */
  available: number
  /** Credits that the account was given. */
  total: number
  /** Credits that the account has spent. */
  used: number
  /** Credits that open holds have set aside. */
  held: number
}

/** Returns the balance in a row of the ledger's functions. `pg` returns bigint as a string, unless the host has changed that. */
export function balanceOf (row: { total: unknown, used: unknown, held: unknown }): Balance {
  const total = Number(row.total)
  const used = Number(row.used)
  const held = Number(row.held)
  return { available: total - used - held, total, used, held }
}
