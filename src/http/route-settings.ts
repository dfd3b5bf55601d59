import type { CreditsRouteOptions } from '../options.js'

/** What the plugin's options say about one route. */
export interface RouteSettings {
  /** Whether a request must have `user_id`. */
  mustName: boolean
  /** The host's own options of the route, with the plugin's preHandler as the last one. */
  options: CreditsRouteOptions
}
