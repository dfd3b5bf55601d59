import { isStorable } from './text.js'

/** Facts about a usage. The caller chooses the keys and values. */
export type Metadata = Record<string, unknown>

/** The maximum size of metadata, in bytes of JSON in UTF-8. */
export const MAX_METADATA_BYTES = 8192

/** The maximum depth of metadata, in levels: half of what JSON.stringify can do on Node.js's default stack. */
export const MAX_METADATA_DEPTH = 2048

/**
 * Returns whether the value is an object that JSON, PostgreSQL's jsonb and a JavaScript reader all represent unchanged. As
 * in `JSON.stringify`, an undefined property is absent, and the `toJSON` method of a value (a Date, for example) returns its
 * replacement.
 */
export function isMetadata (value: unknown): value is Metadata {
  return isObject(value) && isJson(value) && Buffer.byteLength(JSON.stringify(value)) <= MAX_METADATA_BYTES
}

// A loop over levels instead of recursion, because 8 KiB of JSON can be nested deeper than the call stack allows. Each value
// takes at least a byte of JSON, so an object with more values than bytes is too large. This also stops at circular references.
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

// Returns the values inside a value; undefined if JSON cannot represent it. Array.from reads a hole in an array as undefined.
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

/**
 * Returns whether the value is a plain object. Objects of a class are refused, because JSON would silently lose some of
 * their content, for example the entries of a Map.
 */
export function isObject (value: unknown): value is Metadata {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || hasToJson(value)) return false
  const prototype = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

// Refuses the two keys through which a careless merge can change a prototype. Fastify's parser refuses them too.
function isSafeKey (key: string, object: Metadata) {
  if (key === '__proto__') return false
  const value = object[key]
  if (key === 'constructor' && typeof value === 'object' && value !== null && Object.hasOwn(value, 'prototype')) return false
  return isStorable(key)
}
