# shellcheck shell=bash
# Gets the tools of the steps. Sourced by tests/run, after install.sh.
# Each get_TOOL gets one tool unless it is there, and exports its path.

get_crane() {
    go_tool crane github.com/google/go-containerregistry/cmd/crane "$CRANE_VERSION"
    export WHARFAGE_TEST_CRANE=$cache/crane-$CRANE_VERSION/crane
}

# Docker's credential helper for Amazon ECR.
get_ecr_login() {
    local module=github.com/awslabs/amazon-ecr-credential-helper/ecr-login
    go_tool docker-credential-ecr-login "$module/cli/docker-credential-ecr-login" "$ECR_LOGIN_VERSION"
    export WHARFAGE_TEST_ECR_LOGIN=$cache/docker-credential-ecr-login-$ECR_LOGIN_VERSION/docker-credential-ecr-login
}

get_versitygw() {
    go_tool versitygw github.com/versity/versitygw/cmd/versitygw "$VERSITYGW_VERSION"
    export WHARFAGE_TEST_VERSITYGW=$cache/versitygw-$VERSITYGW_VERSION/versitygw
}

get_helm() {
    go_tool helm helm.sh/helm/v3/cmd/helm "$HELM_VERSION"
    export WHARFAGE_TEST_HELM=$cache/helm-$HELM_VERSION/helm
}

# The status of an object as Flux computes it, by its own library.
get_kstatus() {
    local version
    version=$(cat "$root"/tests/tools/kstatus/{go.mod,main.go} | sha256sum | cut -c 1-16)
    local place=$cache/kstatus-$version/kstatus
    [[ -x $place ]] || locked "kstatus-$version" build_kstatus "$version" "$place"
    export WHARFAGE_TEST_KSTATUS=$place
}
build_kstatus() {
    [[ ! -x $2 ]] || return 0
    build_module kstatus "$1" "" "$scratch/bin/kstatus" .
    mv -T "$scratch/bin" "$(dirname "$2")"
}

get_helm_docs() {
    go_tool helm-docs github.com/norwoodj/helm-docs/cmd/helm-docs "$HELM_DOCS_VERSION"
    export WHARFAGE_TEST_HELM_DOCS=$cache/helm-docs-$HELM_DOCS_VERSION/helm-docs
}

# The Lua that Argo CD has built in.
get_glua() {
    go_tool glua github.com/yuin/gopher-lua/cmd/glua "$GLUA_VERSION"
    export WHARFAGE_TEST_GLUA=$cache/glua-$GLUA_VERSION/glua
}

# The kinds of other projects that the chart and the examples use, as their authors publish them: files of their Go modules.
get_foreign_crds() {
    local folder
    folder=$cache/foreign-crds-$(printf '%s\n' "${FOREIGN_CRDS[@]}" | sha256sum | cut -c 1-16)
    [[ -d $folder ]] || locked foreign-crds download_crds "$folder"
    export WHARFAGE_TEST_FOREIGN_CRDS=$folder
}
download_crds() {
    local line module files place
    [[ ! -d $1 ]] || return 0
    need go "install Go 1.26 (https://go.dev/dl)"
    mkdir "$scratch/crds"
    for line in "${FOREIGN_CRDS[@]}"; do
        read -r -d '' module files <<<"$line" || true
        with_progress "downloading $module" insistent env GOFLAGS= go mod download -C "$scratch" -json "$module"
        place=$(sed -n 's/^\t"Dir": "\(.*\)",$/\1/p' "$scratch/log" | tail -n 1)
        for file in $files; do install -m 644 "$place/$file" "$scratch/crds"; done
    done
    mv -T "$scratch/crds" "$1"
}

get_etcd() {
    local place=$cache/etcd-$ETCD_VERSION/etcd
    if [[ -x ${KUBEBUILDER_ASSETS:-}/etcd ]]; then
        place=$KUBEBUILDER_ASSETS/etcd
    elif [[ ! -x $place ]]; then
        locked "etcd-$ETCD_VERSION" build_etcd "$place"
    fi
    export WHARFAGE_TEST_ETCD=$place
}
build_etcd() {
    [[ ! -x $1 ]] || return 0
    build_module etcd "$ETCD_VERSION" "" "$scratch/bin/etcd" go.etcd.io/etcd/server/v3
    mv -T "$scratch/bin" "$(dirname "$1")"
}

get_coredns() {
    local folder=$cache/coredns-$COREDNS_VERSION
    [[ -x $folder/coredns ]] || locked "coredns-$COREDNS_VERSION" build_coredns "$folder"
    export WHARFAGE_TEST_COREDNS=$folder/coredns
}
build_coredns() {
    [[ ! -x $1/coredns ]] || return 0
    build_module coredns "$COREDNS_VERSION" "" "$scratch/bin/coredns" .
    mv -T "$scratch/bin" "$1"
}

# get_kubernetes NAME...: some of Kubernetes' programs, as WHARFAGE_TEST_KUBE_APISERVER and the like.
get_kubernetes() {
    local name variable wanted=()
    for name in "$@"; do
        variable=WHARFAGE_TEST_${name^^}
        variable=${variable//-/_}
        if [[ -x ${KUBEBUILDER_ASSETS:-}/$name ]]; then
            export "$variable=$KUBEBUILDER_ASSETS/$name"
        else
            export "$variable=$cache/$name-$KUBERNETES_VERSION/$name"
            [[ -x ${!variable} ]] || wanted+=("$name")
        fi
    done
    ((${#wanted[@]} == 0)) || locked "kubernetes-$KUBERNETES_VERSION" build_kubernetes "${wanted[@]}"
}
build_kubernetes() {
    local name missing=() packages=() version=k8s.io/component-base/version
    for name in "$@"; do
        [[ -x $cache/$name-$KUBERNETES_VERSION/$name ]] || missing+=("$name") packages+=("k8s.io/kubernetes/cmd/$name")
    done
    ((${#missing[@]})) || return 0
    # In one go build, which shares most of the work. Without the version clients can't tell what they talk to.
    build_module kubernetes "$KUBERNETES_VERSION" \
        "-X $version.gitVersion=$KUBERNETES_VERSION -X $version.gitMajor=1 -X $version.gitMinor=$(cut -d . -f 2 <<<"$KUBERNETES_VERSION")" \
        "$scratch/kubernetes/" "${packages[@]}"
    for name in "${missing[@]}"; do
        mkdir "$scratch/$name"
        mv "$scratch/kubernetes/$name" "$scratch/$name/$name"
        mv -T "$scratch/$name" "$cache/$name-$KUBERNETES_VERSION"
    done
}

get_cargo_deny() {
    cargo_tool cargo-deny "$CARGO_DENY_VERSION"
    cargo_deny=$cache/cargo-deny-$CARGO_DENY_VERSION/bin/cargo-deny
}

get_cargo_cyclonedx() {
    cargo_tool cargo-cyclonedx "$CARGO_CYCLONEDX_VERSION"
    export CARGO_CYCLONEDX=$cache/cargo-cyclonedx-$CARGO_CYCLONEDX_VERSION/bin/cargo-cyclonedx
}

get_actionlint() {
    go_tool actionlint github.com/rhysd/actionlint/cmd/actionlint "$ACTIONLINT_VERSION"
    actionlint=$cache/actionlint-$ACTIONLINT_VERSION/actionlint
}

python_for_tests() {
    local python
    for python in python3.11 python3; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python" && return
        fi
    done
    die "python3 is missing or older than 3.11: install it"
}
get_python() {
    local python folder
    python=$(python_for_tests)
    # An environment holds its own path, so it is made in place; the file `complete` says that it is whole.
    folder=$cache/python-$({ cat "$root/tests/tools/requirements.txt" && "$python" --version; } | sha256sum | cut -c 1-16)
    [[ -e $folder/complete ]] || locked "$(basename "$folder")" make_environment "$python" "$folder"
    export WHARFAGE_TEST_PYTHON=$folder/bin/python WHARFAGE_TEST_AWS=$folder/bin/aws
    python_bin=$folder/bin
}
make_environment() {
    [[ ! -e $2/complete ]] || return 0
    "$1" -c 'import ensurepip, venv' 2>/dev/null || locked apt install_packages python3-venv
    rm -rf -- "$2"
    with_progress "making a Python environment" "$1" -m venv "$2"
    with_progress "installing the tests' packages into it" \
        "$2/bin/pip" install --disable-pip-version-check --no-deps -r "$root/tests/tools/requirements.txt"
    touch "$2/complete"
}

# The folder of the newest PostgreSQL server that is installed.
postgres_bin() {
    local initdb
    initdb=$(find /usr/lib/postgresql -maxdepth 3 -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
    [[ -n $initdb ]] || initdb=$(command -v initdb || true)
    [[ -z $initdb ]] || dirname "$(readlink -f "$initdb")"
}
get_postgres() {
    WHARFAGE_TEST_POSTGRES_BIN=${WHARFAGE_TEST_POSTGRES_BIN:-$(postgres_bin)}
    if [[ -z $WHARFAGE_TEST_POSTGRES_BIN ]]; then
        locked apt install_postgres
        WHARFAGE_TEST_POSTGRES_BIN=$(postgres_bin)
    fi
    [[ -x $WHARFAGE_TEST_POSTGRES_BIN/initdb ]] || die "there is no initdb in ${WHARFAGE_TEST_POSTGRES_BIN:-/usr/lib/postgresql}"
    export WHARFAGE_TEST_POSTGRES_BIN
}
install_postgres() {
    [[ -z $(postgres_bin) ]] || return 0
    # Only the programs are wanted: without this the package starts a server of the machine's own.
    if [[ ! -e /etc/postgresql-common/createcluster.conf ]]; then
        install_packages postgresql-common
        sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    fi
    install_packages postgresql
}

get_skopeo() {
    command -v skopeo >/dev/null || locked apt install_packages skopeo
    WHARFAGE_TEST_SKOPEO=$(command -v skopeo) || die "skopeo is missing after it was installed"
    export WHARFAGE_TEST_SKOPEO
}

# Shells whose languages `wharfage env` writes, beside bash.
get_shells() {
    local shell missing=()
    for shell in fish zsh; do
        command -v "$shell" >/dev/null || missing+=("$shell")
    done
    ((${#missing[@]} == 0)) || locked apt install_packages "${missing[@]}"
}

get_compiler() {
    # Some crates are made of C, one by make, and rustc links by the C compiler.
    { command -v cc && command -v make; } >/dev/null || locked apt install_packages gcc libc6-dev make
}

# The build tools of deploy/image/build.
get_image_builder() {
    local program missing=()
    for program in buildah:buildah musl-gcc:musl-tools make:make cmake:cmake; do
        command -v "${program%:*}" >/dev/null || missing+=("${program#*:}")
    done
    ((${#missing[@]} == 0)) || locked apt install_packages "${missing[@]}"
    get_cargo_cyclonedx
}

# The programs of a node, beside Kubernetes' own.
get_node() {
    local program missing=()
    # Before minutes are spent on building.
    "$root/tests/node/isolated" --able || exit 1
    for program in ip:iproute2 iptables:iptables runc:runc; do
        command -v "${program%:*}" >/dev/null || missing+=("${program#*:}")
    done
    [[ -x /usr/lib/cni/ptp || -x /opt/cni/bin/ptp ]] || missing+=(containernetworking-plugins)
    is_static /bin/busybox || missing+=(busybox-static)
    ((${#missing[@]} == 0)) || locked apt install_packages "${missing[@]}"
    command -v containerd >/dev/null || locked apt install_containerd
    export WHARFAGE_TEST_BUSYBOX=/bin/busybox
}
is_static() { [[ -x $1 ]] && ! readelf --program-headers "$1" | grep -q INTERP; }
install_containerd() {
    install_packages containerd
    # Only the programs are wanted, no daemon of the machine's own.
    [[ ! -d /run/systemd/system ]] || systemctl disable --now containerd
}
