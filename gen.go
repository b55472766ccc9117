// SPDX-License-Identifier: Apache-2.0

// Package halfopen holds what the repository generates; there is nothing to
// import here. Run `make generate`.
package halfopen

// One little-endian object serves every architecture: the programs use no
// register of the machine, only typed tracepoints and iterators.
//go:generate go tool bpf2go -go-package bpf -output-dir bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types halfopen bpf/halfopen.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-declarations -I bpf -I bpf/libbpf

// Package abi is generated from the object's BTF, so after the object.
//go:generate go run ./internal/abigen bpf/halfopen_bpfel.o bpf/abi/abi.go

//go:generate go run ./internal/dashboards deploy/grafana

//go:generate go run ./internal/metricsdoc docs/metrics.md

//go:generate go run ./internal/licenses cmd/halfopen/licenses.txt

// Last, since it reads what the lines above write. `make check` has no clang, and
// compares these checksums instead of compiling. They prove that nobody changed a C
// source, the line that compiles it, or what it was compiled to, without `make
// generate`. They do not prove that this compiler makes this object of these sources:
// `make test` does, which compiles again.
//go:generate sh -c "find bpf -name '*.[ch]' -o -name '*_bpfel.*' | LC_ALL=C sort | xargs sha256sum gen.go >bpf/generated.sha256"
