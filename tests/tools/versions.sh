# shellcheck shell=bash
# The versions of the tools that tests/run gets. A new version is a new folder in the cache.
# Each script that sources this file uses some of it.
# shellcheck disable=SC2034
CARGO_DENY_VERSION=0.20.2
CARGO_CYCLONEDX_VERSION=0.5.9
CRANE_VERSION=v0.22.1
ECR_LOGIN_VERSION=v0.12.0
VERSITYGW_VERSION=v1.8.0
HELM_VERSION=v3.22.0
# What a go.mod builds has its version there.
KUBERNETES_VERSION=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$root/tests/tools/kubernetes/go.mod")
ETCD_VERSION=$(awk '$1 == "go.etcd.io/etcd/server/v3" { print $2 }' "$root/tests/tools/etcd/go.mod")
COREDNS_VERSION=$(awk '$2 == "github.com/coredns/coredns" { print $3 }' "$root/tests/tools/coredns/go.mod")
ACTIONLINT_VERSION=v1.7.12
HELM_DOCS_VERSION=v1.14.2
GLUA_VERSION=v1.1.1
# A Go module with its version, and the files in it.
FOREIGN_CRDS=(
    "github.com/prometheus-operator/prometheus-operator@v0.85.0 example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml
    example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml
    example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml"
    "github.com/argoproj/argo-cd/v3@v3.1.0 manifests/crds/application-crd.yaml"
    "github.com/fluxcd/source-controller@v1.7.0 config/crd/bases/source.toolkit.fluxcd.io_gitrepositories.yaml"
    "github.com/fluxcd/helm-controller@v1.4.0 config/crd/bases/helm.toolkit.fluxcd.io_helmreleases.yaml"
    "github.com/fluxcd/kustomize-controller@v1.6.0 config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml"
)
