// needs no database
import { readFile } from 'node:fs/promises'
import t from 'tap'

const root = new URL('../../', import.meta.url)

t.test('SECURITY.md names tests that are there', async t => {
  const policy = await readFile(new URL('SECURITY.md', root), 'utf8')
  const named = [...policy.matchAll(/^- `(test\/[^`]+)`: (.+)$/gm)]
  t.equal(named.length, policy.split('\n').filter(line => line.startsWith('- ')).length, 'each item names a test')
  for (const [, file, name] of named) t.ok((await namesIn(file!)).some(known => known.startsWith(name!)), `${file}: ${name}`)
})

t.test('every threat has a test', async t => {
  const policy = await readFile(new URL('SECURITY.md', root), 'utf8')
  const threats = policy.split('\n### ').slice(1)
  t.ok(threats.length > 8)
  t.strictSame(threats.filter(threat => !threat.includes('\n- `test/')), [])
})

/** The names of a file's tests, as far as they are written out. */
async function namesIn (file: string): Promise<string[]> {
  const source = await readFile(new URL(file, root), 'utf8').catch(() => '')
  const quoted = source.matchAll(/\bt\.test\((?:'((?:[^'\\]|\\.)+)'|`([^`]+)`)/g)
  return [...quoted].map(([, single, template]) => (single ?? template)!.replaceAll('\\', ''))
}
