import fc from 'fast-check'
import { hardString } from './values.js'

// The text of requests as a careless or a hostile client sends it.

const BODY_LIMIT = 65_536

const bytes = fc.uint8Array({ minLength: 1, maxLength: 4 }).map(part => Buffer.from(part))

/** Generates bodies from JSON texts. Most of them are damaged, and no longer JSON. */
export function damagedBody (json: fc.Arbitrary<string>): fc.Arbitrary<Buffer> {
  const place = fc.double({ min: 0, max: 1, noNaN: true })
  const at = (text: Buffer, part: number) => Math.floor(text.length * part)
  const raw = json.map(text => Buffer.from(text))
  return fc.oneof(
    fc.tuple(raw, place).map(([text, part]) => text.subarray(0, at(text, part))),
    fc.tuple(raw, place, bytes).map(([text, part, more]) =>
      Buffer.concat([text.subarray(0, at(text, part)), more, text.subarray(at(text, part))])),
    json.map(text => Buffer.from(text.replace('{', '{"__proto__":{"credits":5},'))),
    json.map(text => Buffer.from(text.replace('{', '{"constructor":{"prototype":{"credits":5}},'))),
    json.map(text => Buffer.from(text.replace('{', '{"user_id":"ben","credits":7,'))),
    json.map(text => Buffer.from(text.replace('credits', 'cr\\u0065dits'))),
    json.map(text => Buffer.from(text.replace(/"credits":(\d+)/, '"credits":$1.0'))),
    json.map(text => Buffer.from(text.replace(/"credits":(\d+)/, '"credits":$1e0'))),
    json.map(text => Buffer.from(text.replace(/"credits":(\d+)/, '"credits":0$1'))),
    json.map(text => Buffer.from(`\ufeff${text}`)),
    json.map(text => Buffer.from(`[${text}]`)),
    json.map(text => Buffer.from(text + text)),
    json.map(text => Buffer.from(text, 'latin1')),
    json.map(text => Buffer.from(text, 'utf16le')),
    fc.tuple(json, fc.constantFrom(-1, 0, 1, 5000)).map(([text, more]) => Buffer.from(text.padEnd(BODY_LIMIT + more))),
    fc.constantFrom('', ' ', '{', 'null', '1', '"x"', '{}', '[', '{"a":'.repeat(5000), '['.repeat(60_000)).map(text => Buffer.from(text))
  )
}

/** Generates misleading and malformed queries. */
export function damagedQuery (query: fc.Arbitrary<string>): fc.Arbitrary<string> {
  return fc.tuple(query, fc.oneof(fc.constantFrom(
    'user_id=ben', 'user_id=', 'user_id', 'user_id[]=ben', 'user_id[a]=ben', 'user_id.a=ben', '%75ser_id=ben', 'userid=ben', '__proto__=ben',
    'constructor[prototype][x]=1', '%FF', '%', '%00=1', '=', '&', '&&', ';user_id=ben', '+', 'user_id=%C0%AE', '#user_id=ben', 'cursor=',
    `x=${'y'.repeat(9000)}`, 'a&'.repeat(1500)
  ), hardString.map(text => encodeURIComponent(text.toWellFormed())))).map(([query, more]) => `${query}&${more}`)
}

const PARAMETER = /\{\w+\}/

/** Generates paths that lead to another route, or only seem to. */
export function damagedPath (path: string): fc.Arbitrary<string> {
  return fc.constantFrom(
    `${path}/`, `/${path}`, `${path}//`, path.toUpperCase(), path.replace('credits', '%63redits'), path.replace('/credits', '%2Fcredits'),
    `${path}%00`, `${path}%`, `${path}%FF`, `${path}/../credits`, `${path}/%2e%2e/credits`, `${path};user_id=ben`, `${path}#x`,
    path.replaceAll('/', '\\'), `${path}/${'x'.repeat(200)}`, '/', '*', `${path}.json`, path.replace(PARAMETER, ''), path.replace(PARAMETER, 'x'.repeat(101))
  )
}
