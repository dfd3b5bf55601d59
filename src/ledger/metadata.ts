import { isStorable } from './text.js'

/** Facts about a usage, in the caller's own words. */
export type Metadata = Record<string, unknown>

/** The longest metadata, in bytes of JSON in UTF-8. */
export const MAX_METADATA_BYTES = 8192

/**
 * Whether the value is an object that JSON, PostgreSQL's jsonb and a JavaScript reader all hold unchanged. As in
 * `JSON.stringify`, an undefined property is absent and a Date (or anything with toJSON) is what it says it is.
 */
export function isMetadata (value: unknown): value is Metadata {
  return isObject(value) && isJson(value) && Buffer.byteLength(JSON.stringify(value)) <= MAX_METADATA_BYTES
}

// A loop and a list, because 8 KiB can nest deeper than the call stack goes. Each value is at least a byte of JSON, so
// whatever has more of them, a circular reference too, is too large.
function isJson (root: unknown) {
  const values = [root]
  for (let seen = 0; values.length > 0; seen++) {
    const value = values.pop()
    if (seen > MAX_METADATA_BYTES) return false
    if (Array.isArray(value)) values.push(...value)
    else if (typeof value === 'object' && value !== null) {
      if (!isObject(value) || !Object.keys(value).every(key => isSafeKey(key, value))) return false
      values.push(...Object.values(value).filter(item => item !== undefined).map(asJson))
    } else if (!isJsonScalar(value)) return false
  }
  return true
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

// A plain object: of no class, so that nothing (the entries of a Map, say) is lost without a word.
function isObject (value: unknown): value is Metadata {
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
