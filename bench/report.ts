import type { compare } from './targets.js'
import type { Line } from './results.js'

const number = (value: number) => value >= 1000 ? Math.round(value).toLocaleString('en') : value.toPrecision(3)

/** The medians as a Markdown table. */
export function tableOf (lines: Line[]): string {
  return table(['', 'callers', 'accounts', 'per second', 'p50 ms', 'p99 ms'], lines.map(line => [
    `${line.way === 'http' ? 'HTTP: ' : ''}${line.contender}`, String(line.callers), line.accounts === 'hot' ? 'one' : '10,000',
    ...line.void === undefined ? [number(line.perSecond), number(line.p50), number(line.p99)] : [`void: ${line.void}`, '', '']
  ]))
}

/** What was to be reached, as a Markdown table. */
export function targetsOf (comparison: ReturnType<typeof compare>): string {
  return table(['ratio', 'to reach', 'measured', ''], comparison.map(({ what, bound, measured, reached }) =>
    [what, String(bound), measured.toPrecision(3), reached ? 'reached' : 'not reached']))
}

/** Rows as a Markdown table. */
export function table (head: string[], rows: string[][]): string {
  return [head, head.map(() => '---'), ...rows].map(row => `| ${row.join(' | ')} |\n`).join('')
}
