import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'

/** A script of this project that runs in a process of its own. */
export type Example = ReturnType<typeof startScript>

/** An empty folder that is gone after the test. */
export async function temporaryFolder (t: Test): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'fastify-ai-credits-example-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  return folder
}

/** Starts a server and waits until it listens. */
export async function startServer (t: Test, script: string, env: NodeJS.ProcessEnv): Promise<Example & { url: string }> {
  const example = startScript(t, script, { PORT: '0', ...env })
  const [, url] = await example.said(/Server listening at (http:\S+)/)
  await example.said(/Press Ctrl-C/)
  return { ...example, url: url! }
}

/** Starts a script, named from the project's folder, which is killed after the test if it still runs. */
export function startScript (t: Test, script: string, env: NodeJS.ProcessEnv, args: string[] = []) {
  const path = fileURLToPath(new URL(`../../${script}`, import.meta.url))
  const child = spawn(process.execPath, [path, ...args], { env: { ...plainEnv(), ...env }, stdio: 'pipe' })
  const exited = once(child, 'close').then(([code]) => code as number | null)
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', data => { stdout += data })
  child.stderr.on('data', data => { stderr += data })

  async function said (pattern: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const found = pattern.exec(stdout)
      if (found !== null) return found
      const ended = await Promise.race([exited.then(() => true), once(child.stdout, 'data').then(() => false)])
      if (ended && !pattern.test(stdout)) throw new Error(`${script} ended without saying ${pattern}:\n${stdout}${stderr}`)
    }
  }

  async function end (signal: NodeJS.Signals): Promise<number | null> {
    child.kill(signal)
    return exited
  }

  t.teardown(async () => {
    if (child.exitCode === null && child.signalCode === null) await end('SIGKILL')
  })
  return {
    pid: child.pid!,
    exited,
    said,
    end,
    endInput: () => { child.stdin.end() },
    output: () => stdout,
    errors: () => stderr
  }
}

/** Sends a request and returns the status and the parsed body. */
export async function send (url: string, body?: unknown, headers: Record<string, string> = {}) {
  const response = await fetch(url, body === undefined
    ? { headers }
    : { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) })
  return { status: response.status, body: await response.json() as any }
}

// Little more than a shell has, so that the developer's settings do not reach the example. Nor is its coverage taken:
// it runs the built package, of which killed processes would report nothing.
function plainEnv (): NodeJS.ProcessEnv {
  const { PATH, HOME, TMPDIR, SystemRoot } = process.env
  return { PATH, HOME, TMPDIR, SystemRoot, _TAPJS_PROCESSINFO_COVERAGE_: '0' }
}
