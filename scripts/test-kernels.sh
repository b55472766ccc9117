#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# test-kernels.sh runs the tests that need a kernel on other kernels than this machine's,
# each in a virtual machine. QEMU emulates the processor, so no KVM is needed.
#
#   KERNELS="5.10 arm64"  only these of Debian's cloud kernels; arm64 (a 6.12) and
#                         lockdown (a 5.10 that lets no program read kernel memory) run
#                         only the tests that scripts/vm/quick lists for them
#   KERNEL_IMAGE=vmlinuz  this kernel instead; with MODULES=/lib/modules/VERSION if the
#                         modules of scripts/vm/modules are not built in
#   TESTS=regexp          only the tests whose name matches
#   QUICK=1               only the tests of scripts/vm/quick: about 15 min on two processors, not 100
#   JOBS=1                number of machines at a time; default: the number of processors
#
# scripts/vm/left-out lists the tests that run on none of these kernels, and the tests that
# one kernel cannot pass. The latter skip themselves and print the reason. Every other test
# that does not run is a failure; with KERNEL_IMAGE, a test that prints a reason is not.
# When all kernels have passed all tests, the script writes docs/kernel-support.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

declare -A suites=([5.10]=bullseye [6.1]=bookworm [6.12]=trixie [7]=sid [arm64]=trixie [lockdown]=bullseye)
tested=(bpf internal/lab e2e) # packages
limit=${QUICK:+1400}           # seconds, for one machine
limit=${limit:-5000}
whole=$((2 * limit)) # and for all machines
export PATH=$PATH:/usr/sbin:/sbin
cache=${XDG_CACHE_HOME:-$HOME/.cache}/halfopen/kernels
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { printf '    %s\n' "$*"; }
die() {
    printf 'test-kernels: %s\n' "$*" >&2
    exit 1
}

# own COMMAND...: runs apt-get or apt-cache for $suite alone, with its own state in $dir and
# the mirror of this machine's sources.
own() {
    "$@" -qq -o Dir::State="$dir/apt" -o Dir::State::status=/dev/null \
        -o Dir::Cache="$dir/apt" -o Dir::Cache::pkgcache=pkgcache.bin \
        -o Dir::Etc::sourcelist="$dir/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o APT::Architecture="$arch" -o APT::Architectures::="$arch" -o APT::Sandbox::User=root \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false </dev/null
}

# fetch SUITE sets image and modules to the newest kernel of a suite for $arch. Packages
# with a version come and go; the package without a version depends on the current ones,
# which have the files. For another architecture than this machine's, fetch also sets usr
# to the directory from which program takes programs.
fetch() {
    local suite=$1 dir=$cache/$1 mirror packages files
    [[ $arch == amd64 ]] || dir+=-$arch
    # shellcheck disable=SC2016 # apt's, not the shell's
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' | awk '$2 == "Debian" && !n++ { print $1 }')
    [[ -n $mirror ]] || die "apt's sources have no Debian mirror, or apt-get update has not run yet: use KERNEL_IMAGE"
    mkdir -p "$dir/apt/lists/partial" "$dir/apt/archives/partial"
    echo "deb [arch=$arch signed-by=$keyring] $mirror $suite main" >"$dir/apt/sources.list"
    own apt-get update
    packages=$(own apt-cache depends --recurse --important "linux-image-cloud-$arch" | grep -E '^linux-[a-z]+-[0-9]' || true)
    [[ -n $packages ]] || die "$suite has no linux-image-cloud-$arch"
    if [[ $arch != amd64 ]]; then
        packages+=" busybox-static $(own apt-cache depends --recurse --important iproute2 | grep -E '^(iproute2|lib|zlib)' | sort -u)"
    fi
    # shellcheck disable=SC2086 # one a word
    files=$(own apt-get download --print-uris $packages | sort)
    if [[ "$(cat "$dir/files" 2>/dev/null)" != "$files" ]]; then
        say "$suite: downloading $(awk '{ sum += $3 } END { printf "%d", sum / 1e6 }' <<<"$files") MB"
        rm -rf "$dir/root" "$dir/debs" "$dir/files"
        mkdir -p "$dir/root/usr/lib" "$dir/root/lib" "$dir/debs"
        # shellcheck disable=SC2086 # one a word
        (cd "$dir/debs" && own apt-get download $packages)
        for deb in "$dir"/debs/*; do
            dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$dir/root"
        done
        rm -r "$dir/debs"
        # Packages have the modules in lib or usr/lib, and kmod reads either, depending on their age.
        [[ -d $dir/root/lib/modules ]] || ln -s ../usr/lib/modules "$dir/root/lib/modules"
        [[ -d $dir/root/usr/lib/modules ]] || ln -s ../../lib/modules "$dir/root/usr/lib/modules"
        depmod -b "$dir/root" "$(ls "$dir/root/lib/modules")"
        echo "$files" >"$dir/files"
    fi
    usr=$dir/root/usr
    modules=$(echo "$dir"/root/lib/modules/*)
    image=$(find "$dir/root" -name 'vmlinuz*' -print -quit)
}

# program NAME: installs a program and the libraries that it is linked with, from this
# machine or, for another architecture, from the packages.
program() {
    local path lib
    if [[ $arch != amd64 ]]; then
        install -D "$usr/bin/$1" "$root/bin/$1"
        install -D -t "$root/lib" "$usr"/lib/*-linux-gnu/*.so.*
        return
    fi
    path=$(command -v "$1")
    install -D "$path" "$root/bin/$1"
    for lib in $(ldd "$path" 2>/dev/null | grep -o '/[^ ]*'); do
        install -D "$lib" "$root$lib"
    done
}

# pack DIRECTORY: prints an archive that a kernel unpacks. Archives can be concatenated.
pack() { (cd "$1" && find . | busybox cpio -o -H newc 2>/dev/null); }

# common: makes, once, the archive of the files that all kernels of $arch share.
common() {
    local root=$tmp/root.$arch
    [[ ! -e $root ]] || return 0
    mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,etc,modules,tests}
    program busybox
    program ss
    install scripts/vm/init "$root/init"
    install -D -m 644 docs/security.md "$root/docs/security.md" # a test reads it
    if [[ $arch == amd64 ]]; then
        install bin/halfopen "$root/bin/halfopen"
    else
        GOARCH=$arch CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$root/bin/halfopen" ./cmd/halfopen
    fi
    for package in "${tested[@]}"; do
        GOARCH=$arch CGO_ENABLED=0 go test -c -ldflags '-s -w' -o "$root/tests/${package//\//-}" "./$package"
    done
    pack "$root" >"$tmp/common.$arch"
}

# own_modules DIRECTORY: puts the modules to load there, unpacked and numbered in the order
# of loading.
own_modules() {
    local name path n=100
    mkdir -p "$1"
    [[ -n $modules ]] || return 0
    while read -r name _; do
        modprobe -C /dev/null -d "${modules%/lib/modules/*}/" -S "${modules##*/}" --show-depends "$name" 2>/dev/null ||
            true # part of another module on that kernel; if it is missing, tests fail
    done <scripts/vm/modules | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' |
        while read -r path; do
            name=$1/$((n++))-$(basename "$path")
            case $path in
            *.xz) xz -dc "$path" >"${name%.xz}" ;;
            *.zst) zstd -qdc "$path" >"${name%.zst}" ;;
            *.gz) gzip -dc "$path" >"${name%.gz}" ;;
            *) cp "$path" "$name" ;;
            esac
        done
}

# left KERNEL: prints the lines of left-out for a kernel; with *, the lines for all kernels.
left() { awk -v kernel=",$1," '!/^#/ && NF && index("," $2 ",", kernel)' scripts/vm/left-out; }

# usual KERNEL: prints a pattern of the tests that run on a kernel without TESTS.
usual() {
    local tests
    tests=$(awk -v kernel="$1" '$2 == kernel { print $1 }' scripts/vm/quick)
    [[ -n $tests || -z ${QUICK:-} ]] || tests=$(awk -v kernel=",$1," '!/^#/ && (!sub(/^on:/, "", $2) || index("," $2 ",", kernel)) { print $1 }' scripts/vm/quick)
    echo "${tests:+^(${tests//$'\n'/|})$}"
}

# boot KERNEL runs the tests on $image, and prints the result.
#
# With -icount the machine's clocks count instructions, and jump ahead while the machine is
# idle. The other options work around QEMU 7.2's emulation: it spoils the flags after
# cmpxchg16b, and executes rep movsb, which erms and fsrm recommend for copies, byte by
# byte. A machine with two processors does not always come up.
boot() {
    local out=bin/kernels/$1 own=$tmp/$1 skip version missing failed skipped unlisted alarm why='' code=0 began=$SECONDS seconds
    local run=${TESTS:-$(usual "$1")} console=ttyS0 args='' machine
    rm -rf "$out"
    mkdir -p "$out" "$own/etc"
    skip=$(left '*' | awk '{ print $1 }' | paste -sd '|')
    printf '%s\n' "^(${skip:--})$" >"$own/etc/skip"
    printf '%s\n' "$run" >"$own/etc/tests"
    grep -E "$run" "$tmp/all" | grep -vxE -e "${skip:--}" >"$own.wanted" || true # no test matches
    own_modules "$own/modules"
    (cat "$tmp/common.$arch" && pack "$own") >"$own.initramfs"
    machine=(qemu-system-x86_64 -cpu max,-la57,-cx16,-erms,-fsrm -serial "file:$out/console" -serial "file:$out/tests")
    if [[ $arch == arm64 ]]; then # it has one serial port, and QEMU emulates the default way to sign pointers slowly
        console=ttyAMA0
        machine=(qemu-system-aarch64 -M virt -cpu "max,pauth-impdef=on" -serial "file:$out/console"
            -device virtio-serial-pci -chardev "file,id=tests,path=$out/tests" -device "virtconsole,chardev=tests")
    fi
    [[ $1 != lockdown ]] || args=lockdown=confidentiality
    seconds=$((deadline - SECONDS < limit ? deadline - SECONDS : limit))
    # oops=panic and panic=-1 make the machine end after an oops.
    timeout --foreground --kill-after=10 "$((seconds > 0 ? seconds : 1))" "${machine[@]}" \
        -accel tcg -icount shift=0,sleep=off -rtc clock=vm -m 2560 \
        -nodefaults -display none -no-reboot -kernel "$image" -initrd "$own.initramfs" \
        -append "console=$console oops=panic panic=-1 loglevel=5 $args" </dev/null 2>"$out/qemu" &
    trap 'kill $!; exit 1' TERM
    wait $! || code=$?
    rm "$own.initramfs"
    seconds=$((SECONDS - began))
    touch "$out/console" "$out/tests"
    tr -d '\r' <"$out/tests" >"$out/log"
    rm "$out/tests"
    sed -n 's/^doctor: //p' "$out/log" >"$out/doctor"

    count() { grep -c "^ *--- $1: " "$out/log" || true; }
    names() { sed -n "s/^--- $1: \([^ ]*\).*/\1/p" "$out/log" | sort; }
    version=$(sed -n 's/^kernel: //p' "$out/log")
    missing=$(comm -23 "$own.wanted" <(names '[A-Z]*') | paste -sd ' ')
    failed=$(names FAIL | paste -sd ' ')
    sed -nE 's/^ *[a-z_]+\.go:[0-9]+: left out: //p' "$out/log" | sort -u >"$out/left-out"
    said() { sed 's/: .*//' "$out/left-out"; }
    skipped=$(sed -n 's/^ *--- SKIP: \([^ ]*\).*/\1/p' "$out/log" | grep -vxF -f <(said) || true)
    unlisted=$([[ -n ${KERNEL_IMAGE:-} ]] || said | grep -vxF -f <(left "$1" | awk '{ print $1 }') || true)
    if [[ -z $version ]]; then
        why='the machine does not come up'
    elif ((code == 124 || code == 137)); then
        why="the machine hangs: it did not end within $seconds s; did not run: $missing"
    elif ! grep -qx done "$out/log"; then
        why="the machine crashed; did not run: $missing"
    elif [[ -n $failed ]]; then
        why="failed: $failed"
    elif [[ -n $missing ]]; then
        why="did not run: $missing"
    elif grep -q '^exit status [^0]' "$out/log"; then
        why=$(grep '^exit status [^0]' "$out/log")
    elif (($(count PASS) == 0)) || [[ -n $skipped ]]; then
        why="a test that does not run is a failure: ${skipped//$'\n'/ }"
    elif [[ -n $unlisted ]]; then
        why="left out by the test, but not listed in scripts/vm/left-out: ${unlisted//$'\n'/ }"
    fi
    printf '%s: %s: %d passed, %d failed, %d skipped, %d left out, in %d s\n' "$1" "${version:-unknown}" \
        "$(count PASS)" "$(count FAIL)" "$(wc -w <<<"$skipped")" "$(comm -23 "$tmp/all" "$own.wanted" | cat - "$out/left-out" | wc -l)" \
        "$seconds" | tee "$out/result"
    sed 's/^/    left out: /' "$out/left-out"
    # WARN() begins a line. In the middle of one, WARNING is about a mitigation that QEMU's processor lacks.
    alarm=$(grep -m1 -aE 'BUG[: ]|\] WARNING:|Oops|Kernel panic|rcu.*stall|soft lockup' "$out/console" | tr -d '\r' || true)
    [[ -z $alarm ]] || why+="${why:+; }its console has: $alarm"
    [[ -z $why ]] && return
    printf '    %s; see %s\n' "$why" "$out"
    return 1
}

[[ $(uname -m) == x86_64 ]] || die 'this script runs on amd64 only'
tmp=$(mktemp -d)
# When the script ends for any reason, the machines end too: boot passes the signal on.
# shellcheck disable=SC2046 # one a word
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
for package in "${tested[@]}"; do
    sed -n 's/^func \(Test[^(]*\)(t \*testing.T).*/\1/p' "$package"/*_test.go
done | sort >"$tmp/all"
grep -qE "${TESTS:-.}" "$tmp/all" || die "no test matches $TESTS"
stale=$(awk -F '[ /]' '!/^#/ && NF { print $1 }' scripts/vm/left-out scripts/vm/quick | grep -vxF -f "$tmp/all" || true)
[[ -z $stale ]] || die "scripts/vm lists tests that do not exist: $stale"
left '*' | sed 's/^/    left out: /; s/ \* / /' | tr -s ' '
deadline=$((SECONDS + whole))
status=0 arch=amd64
if [[ -n ${KERNEL_IMAGE:-} ]]; then
    image=$KERNEL_IMAGE modules=${MODULES:-}
    common
    boot "$(basename "$image")" &
    wait $! || status=1
    exit $status
fi
read -ra kernels <<<"${KERNELS:-7 6.12 5.10 6.1 arm64 lockdown}" # the slowest first, so that the last ends soon
running=0
for kernel in "${kernels[@]}"; do
    [[ -n ${suites[$kernel]:-} ]] || die "no kernel $kernel; there are: ${!suites[*]}"
    arch=amd64
    [[ $kernel != arm64 ]] || arch=arm64
    fetch "${suites[$kernel]}"
    common
    if ((running == ${JOBS:-$(nproc)})); then
        wait -n || status=1
        running=$((running - 1))
    fi
    boot "$kernel" &
    running=$((running + 1))
done
while ((running > 0)); do
    wait -n || status=1
    running=$((running - 1))
done
if [[ $status == 0 && -z ${KERNELS:-}${TESTS:-}${QUICK:-} ]]; then
    mapfile -t kernels < <(printf '%s\n' "${kernels[@]}" | sort -V)
    scripts/vm/table "${kernels[@]}" >"$tmp/table"
    mv "$tmp/table" docs/kernel-support.md
fi
exit $status
