/**
 * The names of budgets. The kind of a key has the member in it, because a template puts all its keys within one budget.
 *
 * @param {{ member: string, key: string }} token
 */
export const budgetOfKey = ({ member, key }) => `key.${member}:${key}`

/**
 * Makes the budgets of the company acme: a team, its members, and what a new key of each member gets. Does nothing if there
 * are budgets already, because an owner may have changed them.
 *
 * @param {import('fastify-ai-credits').Credits} credits
 */
export async function foundAcme (credits) {
  const { entries } = await credits.budgets('acme', { limit: 1 })
  if (entries.length > 0) return
  await credits.setBudget('acme', 'team:ml', { month: 50_000 })
  for (const member of ['ann', 'ben']) {
    await credits.setBudget('acme', `member:${member}`, { within: 'team:ml', day: 500, month: 5000 })
    await credits.setBudget('acme', `key.${member}:*`, { within: `member:${member}`, day: 200 })
  }
}
