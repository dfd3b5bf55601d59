import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { build } from 'tsup'
import type { BudgetRefusal, DeductInput, Deduction, FastifyAiCreditsOptions, PruneInput, Pruning } from '../../src/index.js'

/** A task for a process: concurrent deducts, pruning, or the start of a gateway. */
export interface Task {
  connectionString: string
  calls?: DeductInput[]
  prune?: Pick<PruneInput, 'before' | 'batch'>
  /** Of the ledger, or of the gateway. */
  options?: FastifyAiCreditsOptions
}

/** The outcome of one call, or of a start. */
export type Outcome = Partial<Deduction> & Partial<Pruning> & {
  error?: { statusCode: number | undefined, code: string | undefined, message: string } & { [field in keyof BudgetRefusal]?: unknown }
}

/** Starts processes, and resolves when they are ready for tasks. They end with the test. */
export async function startProcesses (t: Test, count: number) {
  const [script] = await compile(t.testdir(), new URL('ledger-process.ts', import.meta.url))
  const children = Array.from({ length: count }, () => fork(script!, { execArgv: [], env: plainEnvironment() }))
  t.teardown(async () => {
    const running = children.filter(({ exitCode }) => exitCode === null)
    for (const child of running) child.disconnect()
    await Promise.all(running.map(child => once(child, 'exit')))
  })
  await Promise.all(children.map(outcomesOf))

  /** Does each task in its own process, all at the same moment. Returns the outcomes of each. */
  return async function inProcesses (tasks: Task[]): Promise<Outcome[][]> {
    return await Promise.all(tasks.map(async (task, index) => {
      children[index]!.send(task)
      return await outcomesOf(children[index]!)
    }))
  }
}

async function outcomesOf (child: ChildProcess) {
  const ended = once(child, 'exit').then(() => { throw new Error('A process ended without an answer') })
  const [answer] = await Promise.race([once(child, 'message'), ended])
  return answer
}

/** Compiles scripts for processes, because twenty TypeScript loaders at a time take a minute. Returns their paths. */
export async function compile (outDir: string, ...sources: URL[]): Promise<string[]> {
  const paths = sources.map(source => fileURLToPath(source))
  const entry = Object.fromEntries(paths.map(path => [basename(path, '.ts'), path]))
  const outExtension = () => ({ js: '.mjs' })
  await build({ entry, outDir, outExtension, format: 'esm', skipNodeModulesBundle: true, config: false, silent: true })
  return Object.keys(entry).map(name => join(outDir, `${name}.mjs`))
}

/** Returns the environment without the variables by which the test runner loads its code into every Node.js process. */
export function plainEnvironment (): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(NODE_|_?TAP)/.test(name)))
}
