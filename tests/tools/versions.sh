# The tools that tests/run gets, by version. A changed version is got anew; the old one stays in the cache.
CARGO_DENY_VERSION=0.20.2
CARGO_CYCLONEDX_VERSION=0.5.9
CRANE_VERSION=v0.22.1
VERSITYGW_VERSION=v1.8.0
HELM_VERSION=v3.22.0
# What a go.mod builds has its version there.
KUBERNETES_VERSION=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$root/tests/tools/kubernetes/go.mod")
ETCD_VERSION=$(awk '$1 == "go.etcd.io/etcd/server/v3" { print $2 }' "$root/tests/tools/etcd/go.mod")
COREDNS_VERSION=$(awk '$2 == "github.com/coredns/coredns" { print $3 }' "$root/tests/tools/coredns/go.mod")
