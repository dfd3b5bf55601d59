import { isStorable } from './text.js'

/** Facts about a usage, in the caller's own words. */
export type Metadata = Record<string, unknown>

/** The longest metadata, in bytes of JSON in UTF-8. */
export const MAX_METADATA_BYTES = 8192

/** The deepest metadata, in levels: half of what JSON.stringify can do on Node.js's default stack. */
export const MAX_METADATA_DEPTH = 2048

/**
 * Whether the value is an object that JSON, PostgreSQL's jsonb and a JavaScript reader all hold unchanged. As in
 * `JSON.stringify`, an undefined property is absent and a Date (or anything with toJSON) is what it says it is.
 */
export function isMetadata (value: unknown): value is Metadata {
  return isObject(value) && isJson(value) && Buffer.byteLength(JSON.stringify(value)) <= MAX_METADATA_BYTES
}

// A loop over levels, because 8 KiB can nest deeper than the call stack goes. Each value is at least a byte of JSON, so
// whatever has more of them, a circular reference too, is too large.
function isJson (root: unknown) {
  let level = [root]
  for (let depth = 0, seen = 1; level.length > 0; depth++) {
    if (depth >= MAX_METADATA_DEPTH) return false
    const next: unknown[] = []
    for (const value of level) {
      const parts = partsOf(value)
      if (parts === undefined || (seen += parts.length) > MAX_METADATA_BYTES) return false
      next.push(...parts)
    }
    level = next
  }
  return true
}

const NOTHING: unknown[] = []

// What is inside a value; undefined where JSON would not hold it. A hole of an array is an undefined in it.
function partsOf (value: unknown): unknown[] | undefined {
  if (isJsonScalar(value)) return NOTHING
  if (Array.isArray(value)) return value.length > MAX_METADATA_BYTES ? undefined : Array.from(value, asJson)
  if (!isObject(value) || !Object.keys(value).every(key => isSafeKey(key, value))) return undefined
  return Object.values(value).filter(item => item !== undefined).map(asJson)
}

function isJsonScalar (value: unknown) {
  if (typeof value === 'string') return isStorable(value)
  return value === null || typeof value === 'boolean' || Number.isFinite(value)
}

function asJson (value: unknown) {
  return hasToJson(value) ? value.toJSON() : value
}

const hasToJson = (value: unknown): value is { toJSON: () => unknown } =>
  typeof value === 'object' && value !== null && 'toJSON' in value && typeof value.toJSON === 'function'

/** Whether the value is a plain object: of no class, so that nothing (the entries of a Map, say) is lost without a word. */
export function isObject (value: unknown): value is Metadata {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || hasToJson(value)) return false
  const prototype = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

// The two keys by which a careless merge reaches a prototype; Fastify's parser refuses the same.
function isSafeKey (key: string, object: Metadata) {
  if (key === '__proto__') return false
  const value = object[key]
  if (key === 'constructor' && typeof value === 'object' && value !== null && Object.hasOwn(value, 'prototype')) return false
  return isStorable(key)
}
