# The tools that tests/run gets, by version. A changed version is got anew; the old one stays in the cache.
CARGO_DENY_VERSION=0.20.2
CRANE_VERSION=v0.22.1
VERSITYGW_VERSION=v1.8.0
