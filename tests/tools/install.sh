# shellcheck shell=bash
# Installs tools by go, cargo and apt-get. Sourced by tests/run; get.sh lists the tools.
# Messages go to standard error, because `tests/run --env` writes to standard output.

say() { printf '%s\n' "$*" >&2; }
die() { say "tests/run: $*" && exit 1; }

scratch=
job=
cleanup() {
    # The job leads its own process group, so that nothing of it outlives an interrupted run.
    [[ -z $job ]] || kill -- "-$job" 2>/dev/null || true
    [[ -z $scratch ]] || rm -rf -- "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

# with_progress WHAT COMMAND...: runs the command quietly, tells how long it takes, shows its output when it fails.
with_progress() {
    local what=$1 log=$scratch/log start=$SECONDS reported=0 spent
    shift
    [[ -t 2 ]] || say "$what"
    set -m
    "$@" >"$log" 2>&1 </dev/null &
    job=$!
    set +m
    while kill -0 "$job" 2>/dev/null; do
        spent=$((SECONDS - start))
        if [[ -t 2 ]]; then
            printf '\r%s … %d s ' "$what" "$spent" >&2
        elif ((spent - reported >= 20)); then
            say "$what … $spent s: $(tail -n 1 "$log" | cut -c 1-120)"
            reported=$spent
        fi
        sleep 0.5
    done
    local code=0
    wait "$job" || code=$?
    job=
    [[ -t 2 ]] && printf '\r\033[K' >&2
    # The script's own messages in there, such as failed attempts.
    grep '^tests/run: ' "$log" >&2 || true
    if ((code)); then
        tail -n 40 "$log" >&2
        die "$what failed (exit code $code); its output ends above"
    fi
    say "$what: done in $((SECONDS - start)) s"
}

# insistent COMMAND...: runs the command up to three times, for one that downloads by cmd/go, which asks for each file once: a
# mirror that fails for a moment would fail the run.
insistent() {
    local pause code
    for pause in 5 20 ''; do
        code=0
        "$@" || code=$?
        ((code)) && [[ -n $pause ]] || break
        say "tests/run: failed (exit code $code); another attempt, in $pause s, in case a download did: $*"
        sleep "$pause"
    done
    return "$code"
}

need() { command -v "$1" >/dev/null || die "$1 is missing: $2"; }

# locked NAME FUNCTION...: runs the function while no other run of this script does.
locked() {
    local name=$1 lock
    shift
    mkdir -p "$cache/locks"
    exec {lock}>"$cache/locks/$name"
    flock -n "$lock" || { say "waiting for another run that gets $name" && flock "$lock"; }
    # In the cache, so that the build moves to its place by a rename.
    if [[ -z $scratch ]]; then
        # What a killed run left.
        find "$cache" -maxdepth 1 -name 'scratch.*' -mtime +1 -exec rm -rf -- {} +
        scratch=$(mktemp -d "$cache/scratch.XXXXXX")
    fi
    "$@"
    exec {lock}>&-
}

# go_tool NAME PACKAGE VERSION: builds a program of a Go module.
go_tool() {
    local folder=$cache/$1-$3
    [[ -x $folder/$1 ]] || locked "$1-$3" build_go_tool "$1" "$2" "$3" "$folder"
}
build_go_tool() {
    [[ ! -x $4/$1 ]] || return 0
    need go "install Go 1.26 (https://go.dev/dl)"
    with_progress "building $1 $3 with go" insistent env CGO_ENABLED=0 GOFLAGS= GOBIN="$scratch/bin" go install -v "$2@$3"
    mv -T "$scratch/bin" "$4"
}

# build_module NAME VERSION LDFLAGS OUTPUT PACKAGE...: builds tools of tests/tools/NAME/go.mod. (go install refuses modules that
# replace others.)
build_module() {
    local name=$1 version=$2 flags=$3 output=$4
    shift 4
    need go "install Go 1.26 (https://go.dev/dl)"
    with_progress "building $name $version with go" insistent env CGO_ENABLED=0 GOFLAGS= \
        go build -C "$root/tests/tools/$name" -trimpath -v -ldflags "-s -w $flags" -o "$output" "$@"
}

# cargo_tool NAME VERSION: builds a program of a crate.
cargo_tool() {
    local folder=$cache/$1-$2
    [[ -x $folder/bin/$1 ]] || locked "$1-$2" build_cargo_tool "$1" "$2" "$folder"
}
build_cargo_tool() {
    [[ ! -x $3/bin/$1 ]] || return 0
    # It runs for a second or two: building it fast matters more than its speed.
    with_progress "building $1 $2" env CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=true \
        cargo install "$1" --locked --version "$2" --root "$scratch/root" --target-dir "$scratch/target"
    mv -T "$scratch/root" "$3"
    rm -rf -- "$scratch/target"
}

# install_packages NAME...: installs packages of the distribution.
install_packages() {
    local install=(apt-get install --yes --no-install-recommends "$@")
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        die "please install $* first (on Debian: sudo ${install[*]}); with root this script does it"
    fi
    export DEBIAN_FRONTEND=noninteractive
    # The lists of a machine may be empty or old: they are read again when they don't serve.
    "${install[@]}" --download-only >/dev/null 2>&1 </dev/null || with_progress "reading the lists of packages" apt-get update
    with_progress "installing $*" "${install[@]}" -o DPkg::Lock::Timeout=300
}
