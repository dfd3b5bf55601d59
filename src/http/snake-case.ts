/** Returns an object with its keys in camelCase; nested objects stay unchanged. */
export function toCamelCase (fields: object) {
  return mapKeys(fields, key => key.replace(/_(.)/g, (_, letter) => letter.toUpperCase()))
}

/** Returns an object with its keys in snake_case; nested objects stay unchanged. */
export function toSnakeCase (fields: object) {
  return mapKeys(fields, snakeCase)
}

/** Returns a name in snake_case. */
export function snakeCase (key: string): string {
  return key.replace(/[A-Z]/g, letter => `_${letter.toLowerCase()}`)
}

function mapKeys (fields: object, name: (key: string) => string) {
  return Object.fromEntries(Object.entries(fields).map(([key, value]) => [name(key), value]))
}
