import type { compare } from './targets.js'
import type { Line } from './results.js'

const number = (value: number) => value >= 1000 ? Math.round(value).toLocaleString('en') : value.toPrecision(3)

/** Returns milliseconds as text with three digits or more. */
export const millisecondsOf = (milliseconds: number) => milliseconds >= 1000 ? String(Math.round(milliseconds)) : milliseconds.toPrecision(3)

const accountsOf = ({ accounts, slowDisk }: Line) =>
  `${{ hot: 'one', spread: '10,000', new: 'new' }[accounts]}${slowDisk ? ', each commit 3 ms slower' : ''}`

const figuresOf = ({ perSecond, p50, p99, void: why }: Line) =>
  why === undefined ? [number(perSecond), number(p50), number(p99)] : [`void: ${why}`, '', '']

/** Returns the medians as Markdown tables: those of one process, and those of several. */
export function tablesOf (lines: Line[]): string {
  const figures = ['per second', 'p50 ms', 'p99 ms']
  const single = lines.filter(({ processes }) => processes === undefined).map(line => [
    `${line.way === 'http' ? 'HTTP: ' : ''}${line.contender}`, String(line.callers), accountsOf(line), ...figuresOf(line)
  ])
  const several = lines.filter(({ processes }) => processes !== undefined).map(line => [
    line.contender, `${line.processes} × ${line.callers / line.processes!}`, accountsOf(line), ...figuresOf(line),
    line.unfairness!.toPrecision(3)
  ])
  return [
    ...single.length > 0 ? [table(['', 'callers', 'accounts', ...figures], single)] : [],
    ...several.length > 0 ? [table(['', 'processes × callers', 'accounts', ...figures, 'most ÷ fewest calls'], several)] : []
  ].join('\n')
}

/** Returns the targets and what was measured as a Markdown table. */
export function targetsOf (comparison: ReturnType<typeof compare>): string {
  return table(['ratio', 'to reach', 'measured', ''], comparison.map(({ what, bound, measured, reached }) =>
    [what, String(bound), measured.toPrecision(3), reached ? 'reached' : 'not reached']))
}

/** Returns rows as a Markdown table. */
export function table (head: string[], rows: string[][]): string {
  return [head, head.map(() => '---'), ...rows].map(row => `| ${row.join(' | ')} |\n`).join('')
}
