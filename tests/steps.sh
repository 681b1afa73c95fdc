# shellcheck shell=bash
# The steps of tests/run, which sources this file. prepare_STEP gets the step's tools, run_STEP runs it.

prepare_clippy() { get_compiler; }
prepare_deny() { get_compiler; get_cargo_deny; }
prepare_doc() { get_compiler; }
prepare_shell() { get_python; get_actionlint; }
prepare_python() { get_python; }
prepare_typos() { get_python; }
prepare_rust() { get_compiler; get_postgres; get_versitygw; get_shells; }
prepare_clients() {
    get_compiler; get_postgres; get_versitygw; get_python; get_crane; get_skopeo; get_ecr_login; get_shells
}
prepare_operator() {
    get_compiler; get_python; get_etcd; get_kubernetes kube-apiserver kubectl; get_kstatus; get_crane; get_skopeo
    get_helm; get_helm_docs; get_glua; get_foreign_crds
}
prepare_node() {
    get_compiler; get_node; get_image_builder; get_python; get_crane; get_etcd; get_coredns; get_helm
    get_kubernetes kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet
}

run_fmt() { cargo fmt --all --check; }
run_clippy() { cargo clippy --all-targets -- -D warnings; }
run_deny() { "$cargo_deny" check --hide-inclusion-graph bans licenses sources; }
run_doc() {
    # Private items are documented too, so a link to one leads somewhere.
    RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --no-deps --document-private-items
}
run_shell() {
    local code=0 scripts
    mapfile -t scripts < <(shell_scripts)
    "$python_bin/shellcheck" --check-sourced "${scripts[@]}" || code=$?
    "$actionlint" -shellcheck "$python_bin/shellcheck" -pyflakes= .github/workflows/*.yml || code=$?
    return "$code"
}
run_python() {
    local code=0
    "$python_bin/ruff" check --no-cache || code=$?
    "$python_bin/ruff" format --no-cache --check || code=$?
    return "$code"
}
run_typos() { "$python_bin/typos"; }
run_rust() { cargo test --no-fail-fast "${arguments[@]}"; }
run_clients() { run_pytest tests/clients; }
run_operator() { run_pytest tests/operator; }
run_node() {
    local archive=${CARGO_TARGET_DIR:-$root/target}/image/test.tar
    mkdir -p "${archive%/*}"
    deploy/image/build --profile dev --to "oci-archive:$archive:before" || return
    WHARFAGE_TEST_IMAGE=$archive tests/node/isolated "$WHARFAGE_TEST_PYTHON" -m pytest -p no:cacheprovider "${arguments[@]}" tests/node
}

# shell_scripts: lists the files of the repository that a shell runs. Shellcheck follows what they source.
shell_scripts() {
    local file line
    while read -r -d '' file; do
        line=
        [[ ! -f $file ]] || IFS= read -r line <"$file" || true
        [[ $line != '#!'*sh ]] || printf '%s\n' "$file"
    done < <(git ls-files -z --cached --others --exclude-standard)
}

# run_pytest FOLDER: runs the tests of a folder against a debug build.
run_pytest() {
    # Tests wait more than they work. Each worker has its own servers, and takes tests from those that have more left.
    local workers=$(($(nproc) < 7 ? $(nproc) + 1 : 8))
    # On a cluster that was given they would meet.
    [[ -z ${WHARFAGE_TEST_KUBECONFIG:-} ]] || workers=0
    cargo build --bin wharfage || return
    WHARFAGE_TEST_BINARY=${CARGO_TARGET_DIR:-$root/target}/debug/wharfage \
        "$WHARFAGE_TEST_PYTHON" -m pytest -p no:cacheprovider --numprocesses "$workers" --dist worksteal "${arguments[@]}" "$1"
}
