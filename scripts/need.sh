#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# need.sh NAME... makes sure that the programs of the named Debian packages are there, and
# installs only those that are missing. It looks for the programs and not for the packages,
# so programs from elsewhere are good too.
#
# Some programs go into $TOOLS, which the Makefile puts at the front of PATH, and not into
# the system: golangci-lint (built at $GOLANGCI_LINT_VERSION), and Prometheus with promtool,
# Alertmanager, nginx and containerd, because Debian's packages of these start servers.
set -euo pipefail

# Debian's Alertmanager does not start without its templates, and looks for them only in
# this directory.
templates=/usr/share/prometheus/alertmanager

say() { printf '    %s\n' "$*"; }
die() {
    printf 'make: %s\n' "$*" >&2
    exit 1
}

# there NAME: whether the programs of a package are there. No program of a pipe may end
# before it has read all: the writer would fail, if it is the slower one.
there() {
    case $1 in
    busybox-static) busybox --list | grep -x poweroff && ! ldd "$(command -v busybox)" ;;
    ca-certificates) [[ -n ${SSL_CERT_FILE:-} || -s /etc/ssl/certs/ca-certificates.crt || -s /etc/pki/tls/certs/ca-bundle.crt ]] ;;
    chromium) chromium --version ;; # if it runs, its libraries are there
    containerd) containerd --version && ctr --version && command -v containerd-shim-runc-v2 ;;
    clang-19) command -v clang-19 ;;
    clang-format-19) command -v clang-format-19 ;;
    debian-archive-keyring) [[ -s /usr/share/keyrings/debian-archive-keyring.gpg ]] ;;
    fonts-dejavu-core) [[ -s /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf ]] ;;
    gcc) command -v gcc ;;
    go) # an older go that is allowed to fetches the version of go.mod by itself
        local have want
        have=$(go env GOVERSION) want=go$(awk '$1 == "go" { print $2 }' go.mod)
        [[ -n $have && "$(printf '%s\n' "$want" "$have" | sort -V | sed '$d')" == "$want" ]]
        ;;
    golangci-lint) [[ "$(golangci-lint version --short 2>&1)" == "${GOLANGCI_LINT_VERSION#v}" ]] ;;
    iproute2) command -v ss && command -v ip ;;
    kmod) PATH=$PATH:/usr/sbin:/sbin command -v depmod modprobe ;;
    libc6-dev) [[ -e /usr/include/stdlib.h ]] ;;
    llvm-19) command -v llvm-strip-19 ;;
    nginx) nginx -v ;; # if it runs, its libraries are there
    prometheus) command -v promtool && command -v prometheus ;;
    prometheus-alertmanager) command -v prometheus-alertmanager && [[ -e $templates/default.tmpl && -e $templates/email.tmpl ]] ;;
    qemu-system-arm) command -v qemu-system-aarch64 ;;
    qemu-system-x86) command -v qemu-system-x86_64 ;;
    runc) runc --version ;; # runs, so its libraries are there
    tmux) command -v tmux ;;
    wrk) command -v wrk ;;
    xz-utils) command -v xz ;;
    *) return 1 ;;
    esac >/dev/null 2>&1
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null
}

install_golangci_lint() {
    say "building golangci-lint $GOLANGCI_LINT_VERSION, once: this takes some minutes"
    CGO_ENABLED=0 GOBIN=$TOOLS go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$GOLANGCI_LINT_VERSION"
}

# take PACKAGE PATH...: takes programs out of a package without installing its services.
take() {
    local dir path package=$1
    shift
    say "taking ${*##*/} out of the $package package"
    dir=$(mktemp -d)
    tmp+=("$dir")
    (cd "$dir" && apt -o APT::Sandbox::User=root download "$package")
    dpkg-deb --fsys-tarfile "$dir/$package"_*.deb | tar -x -C "$dir" "${@/#/.}"
    for path; do
        case $path in
        "$templates"/*) install -D -m 644 "$dir$path" "$path" ;;
        *) install -D "$dir$path" "$TOOLS/${path##*/}" ;;
        esac
    done
}

tmp=()
trap 'rm -rf "${tmp[@]}"' EXIT
packages=() missing=() taken=() linter=false
for name; do
    there "$name" && continue
    case $name in
    go) die "Go $(awk '$1 == "go" { print $2 }' go.mod) or newer is needed, but neither PATH nor /usr/local/go/bin has it: https://go.dev/dl/" ;;
    golangci-lint) linter=true ;;
    containerd) taken+=("containerd /usr/bin/containerd /usr/bin/containerd-shim-runc-v2 /usr/bin/ctr") missing+=(containerd) ;;
    nginx) taken+=("nginx /usr/sbin/nginx") missing+=(nginx) ;;
    prometheus) taken+=("prometheus /usr/bin/promtool /usr/bin/prometheus") missing+=(prometheus) ;;
    prometheus-alertmanager) taken+=("prometheus-alertmanager /usr/bin/prometheus-alertmanager $templates/default.tmpl $templates/email.tmpl") missing+=(prometheus-alertmanager) ;;
    *) packages+=("$name") missing+=("$name") ;;
    esac
done

if ((${#missing[@]})); then
    list=$(printf ', %s' "${missing[@]}")
    list=${list:2}
    command -v apt-get >/dev/null || die "missing (names of Debian packages): $list; this machine has no apt-get, so please install them yourself"
    ((EUID == 0)) || die "missing: $list; only root can install them: use sudo once"
    say "installing what is missing: $list"
    apt update
    if ((${#packages[@]})); then
        apt install --no-install-recommends -y "${packages[@]}"
    fi
    for what in "${taken[@]}"; do
        # shellcheck disable=SC2086 # words
        take $what
    done
fi
if $linter; then
    install_golangci_lint
fi
for name; do
    there "$name" || die "$name has been installed, but its program is still not found"
done
