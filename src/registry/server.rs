//! Listeners and connections: accepts within limits, hands requests to the registry, and ends without cutting transfers.
